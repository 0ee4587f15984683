"""What a routing policy may know: the request (Ask), the places (Seat) and their loads (Load)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Ask(NamedTuple):
    """One interactive request, as far as routing is concerned; made for each, so it is cheap."""

    #: number of this request among all of its model; the only state that round robin needs
    turn: int
    #: estimated tokens of prompt and answer
    tokens: int
    #: hash of what makes requests alike (session, or head of the prompt); None: nothing does
    affinity: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A READY instance as a place to serve, frozen at one snapshot."""

    instance_id: str
    #: s until the allocation ends; infinite where nothing says so
    headroom_s: float
    #: requests that the engine runs at the same time
    slots: int
    #: fitted or promised inter-token latency with an empty engine, and what a request adds, ms
    itl_base_ms: float = 0.0
    itl_per_request_ms: float = 0.0
    #: what users were promised, ms
    itl_slo_ms: float = 0.0


class Load(Protocol):
    """What a seat has to do right now; read and never changed by a policy."""

    #: in flight from this gateway
    requests: int
    #: their tokens, estimated
    tokens: int


#: picks a seat: an index into the two sequences, which are parallel and never empty
Policy = Callable[[Ask, Sequence[Seat], Sequence[Load]], int]

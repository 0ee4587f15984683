"""Which batch requests give way to interactive ones in the engine, and the limit on their slots.

Rules: standard library only, since vLLM's interpreter imports it. There are two classes of
requests: what has a positive priority is batch, all else is interactive. Inside a class the order
is that of arrival, whatever number a client wrote; so the field moves nobody ahead of others, as
under vLLM's default policy.
"""
# ruff: noqa: INP001 - a folder for PYTHONPATH, no package

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

#: names the file with the limit
SLOTS_VARIABLE = "HPCSERVE_BATCH_SLOTS"
INTERACTIVE, BATCH = 0, 1

log = logging.getLogger("vllm.hpcserve")


class Request(Protocol):
    """What is looked at of one of vLLM's requests."""

    priority: int
    arrival_time: float

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and of what was generated."""
        ...


_R = TypeVar("_R", bound=Request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What the engine has."""

    #: requests that may run at the same time
    slots: int
    #: of those, how many may be batch; None: all
    batch_slots: int | None
    #: free KV blocks, without those that the engine keeps in reserve
    blocks: int
    #: tokens of one KV block
    block_tokens: int

    def blocks_of(self, request: Request) -> int:
        """Return the KV blocks of a whole request, as if it shared none."""
        return -(-request.num_tokens // self.block_tokens)


def class_of(priority: int) -> int:
    """Return INTERACTIVE or BATCH."""
    return BATCH if priority > INTERACTIVE else INTERACTIVE


def leaving(running: Sequence[_R], asking: Sequence[_R], room: Room) -> list[_R]:
    """Return the running batch requests that are to be pushed out, the newest first.

    Those go that are above the limit, and so many more that each interactive request in *asking*
    finds a slot and KV blocks. The newest has the least to compute again.
    """
    is_within = room.batch_slots is None or len(running) <= room.batch_slots
    if is_within and not asking:
        return []
    batch = sorted((r for r in running if r.priority == BATCH), key=lambda r: r.arrival_time)
    kept = len(batch) if room.batch_slots is None else min(room.batch_slots, len(batch))
    slots = room.slots - len(running) + len(batch) - kept
    blocks = room.blocks + sum(room.blocks_of(one) for one in batch[kept:])
    for request in asking:
        needed = room.blocks_of(request)
        while kept and (slots < 1 or blocks < needed):
            kept -= 1
            slots += 1
            blocks += room.blocks_of(batch[kept])
        slots -= 1
        blocks -= needed
    return batch[kept:][::-1]


def allowed(running: Sequence[Request], asking: Sequence[Request], room: Room) -> int:
    """Return how many requests may run so that batch has no more than its limit."""
    if room.batch_slots is None or room.batch_slots >= room.slots:
        return room.slots
    interactive = sum(request.priority == INTERACTIVE for request in running)
    return min(room.slots, interactive + len(asking) + room.batch_slots)


class SlotsFile:
    """The limit that the agent writes while the engine serves: one number.

    Looked at in each step of the engine, so it costs one `stat` as long as nothing changes.
    Without a file there is no limit; what is no number is reported, and the limit stays.
    """

    def __init__(self, path: str) -> None:
        """Take the path; empty means that there never is a limit."""
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._limit: int | None = None

    def read(self) -> int | None:
        """Return the limit; None: there is none."""
        if not self._path:
            return None
        try:
            now = os.stat(self._path)  # noqa: PTH116 - a Path costs as much again, each step
        except OSError:
            self._seen = self._limit = None
            return None
        # Written anew and renamed: within one tick of the clock the inode still tells.
        if (seen := (now.st_mtime_ns, now.st_ino)) != self._seen:
            self._seen = seen
            self._load()
        return self._limit

    def _load(self) -> None:
        try:
            with open(self._path, encoding="ascii") as file:  # noqa: PTH123 - as above
                self._limit = max(0, int(file.read(32)))
        except (OSError, ValueError) as error:
            log.warning("%s stays at %s: %s: %s", SLOTS_VARIABLE, self._limit, self._path, error)

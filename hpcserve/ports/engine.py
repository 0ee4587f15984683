"""An engine kind: how to start one and how to read it. One instance of it per agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from hpcserve.domain.load import EngineLoad
from hpcserve.domain.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command to start, with its environment on top of the job's."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    #: mark a request as batch, so that interactive ones take its slot; empty where none can
    batch_headers: Mapping[str, str] = field(default_factory=dict)
    #: while the engine serves it reads here how many slots batch may hold; None: it does not
    slots_file: str | None = None
    #: what people should know about this start
    note: str = ""


class Engine(Protocol):
    """Everything that differs between engine programs."""

    def launch(self, model: Model, *, host: str, port: int, key: str, scratch_dir: str) -> Launch:
        """Return how to start it so that every route on host:port asks for bearer *key*."""
        ...

    def read_load(self, metrics: str, at: datetime) -> EngineLoad:
        """Parse the text of `/metrics`; raise BackendError when a needed series is missing."""
        ...

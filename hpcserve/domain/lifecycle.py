"""Life cycles as literal tables: the only machinery for state in hpcserve.

A table maps state -> event -> next state. It feeds the code (`Table.next`), the documentation
(`Table.markdown`) and the database (`Table.states` becomes the CHECK). Rules:

- A late or repeated *fact* is a listed self-loop, since facts come out of order here (an agent may
  say hello before squeue shows its job running).
- Whatever is not listed raises InvalidTransitionError and changes nothing.
- Every move is a Transition, stored as an event; the events of one id in order are its story.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Generic, TypeVar

from hpcserve.errors import InvalidTransitionError

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class Subject(StrEnum):
    """What an event can be about."""

    INSTANCE = "instance"
    BATCH = "batch"
    FILE = "file"
    KEY = "key"
    MODEL = "model"
    CONTROLLER = "controller"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One line of a story: something happened to a subject, and why."""

    subject: Subject
    subject_id: str
    at: datetime
    #: a past-tense fact or an imperative of a life cycle, or a free word for a note (`decided`)
    event: str
    from_state: str | None
    to_state: str | None
    #: one sentence that a user can read
    reason: str
    #: further facts (job id, exit code); JSON-able
    detail: Mapping[str, object] = field(default_factory=dict)


class Table(Generic[S, E]):
    """The legal moves of one noun."""

    def __init__(self, noun: str, edges: Mapping[S, Mapping[E, S]]) -> None:
        """Take the noun and its edges; a state whose every edge is a self-loop is terminal."""
        self.noun = noun
        self.edges = edges
        self.states: tuple[S, ...] = tuple(edges)
        self.terminal = frozenset(
            state for state, moves in edges.items() if all(to is state for to in moves.values())
        )

    def next(self, subject_id: str, state: S, event: E) -> S:
        """Return the state after *event*, or raise InvalidTransitionError."""
        try:
            return self.edges[state][event]
        except KeyError:
            raise InvalidTransitionError(f"{self.noun} {subject_id}", state, event) from None

    def markdown(self) -> str:
        """Draw the table for the documentation; self-loops stand in parentheses."""
        lines = [f"| {self.noun} is | and then |", "|---|---|"]
        for state, moves in self.edges.items():
            onward = [f"{event} → {to.upper()}" for event, to in moves.items() if to is not state]
            stays = [event.value for event, to in moves.items() if to is state]
            if stays:
                onward.append(f"({', '.join(stays)})")
            if state in self.terminal:
                onward.insert(0, "terminal")
            lines.append(f"| {state.upper()} | {', '.join(onward)} |")
        return "\n".join(lines)

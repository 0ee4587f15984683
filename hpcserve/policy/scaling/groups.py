"""Request groups: batch requests of one model with near deadlines, and how long they wait.

The bound is QLM's and Chiron's (arXiv 2407.00047, 2501.08090): the sum of many service times is
nearly normal, so N requests before a fleet that finishes `rate` of them a second take
`N / rate + z * cv * sqrt(N) / rate` with the coefficient of variation of one request. Taken alone
it is over-confident where the mean drifts; `rates` therefore gives a rate with the variance
*between* windows taken off, and this bound adds that of the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import sqrt

from hpcserve.domain.batch import Backlog

#: output lengths vary about as much as their mean
_CV = 1.0
#: deadlines nearer to one another than this are one group
_NEAR = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Requests that are due together."""

    deadline_at: datetime
    #: requests of this group and of those due before it
    open_before: int


def groups_of(backlog: Sequence[Backlog], model: str) -> tuple[Group, ...]:
    """Return the groups of a model, earliest deadline first; a group is due with its first."""
    mine = sorted((b.deadline_at, b.waiting + b.leased) for b in backlog if b.model == model)
    groups: list[Group] = []
    total = 0
    for deadline_at, requests in mine:
        total += requests
        if groups and deadline_at - groups[-1].deadline_at < _NEAR:
            deadline_at = groups.pop().deadline_at  # noqa: PLW2901 - joins the group before it
        groups.append(Group(deadline_at=deadline_at, open_before=total))
    return tuple(groups)


def waiting_s(requests: float, rate: float, z: float) -> float:
    """Return the upper bound of the time that *requests* take at *rate* a second."""
    if requests <= 0:
        return 0.0
    if rate <= 0:
        return float("inf")
    return (requests + z * _CV * sqrt(requests)) / rate

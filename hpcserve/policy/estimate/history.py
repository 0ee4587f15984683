"""A batch's own results in a few stretches of equal numbers of lines, however many there are."""

from __future__ import annotations

from dataclasses import dataclass, replace

#: closed stretches at most; when there are more, neighbours are joined
STRETCHES_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Results that followed one another, and what they took."""

    lines: int = 0
    output_tokens: int = 0
    #: seconds of one instance, summed over the instances that worked on this batch
    instance_s: float = 0.0

    def __add__(self, other: Stretch) -> Stretch:
        """Return both as one."""
        return Stretch(
            lines=self.lines + other.lines,
            output_tokens=self.output_tokens + other.output_tokens,
            instance_s=self.instance_s + other.instance_s,
        )

    @property
    def cost_s(self) -> float:
        """Instance-seconds of one line."""
        return self.instance_s / self.lines


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """All results of one batch so far, the oldest first.

    Stretches have about the same number of lines, and ever more of them: the differences between
    stretches then show how much the cost still moves at the scale of the whole history, whether by
    chance or because the input changes on its way.
    """

    closed: tuple[Stretch, ...] = ()
    open: Stretch = Stretch()
    #: lines that close a stretch
    size: int = 1

    def add(self, more: Stretch) -> History:
        """Return the history with the newest results."""
        growing = self.open + more
        if growing.lines < self.size:
            return replace(self, open=growing)
        closed, size = (*self.closed, growing), self.size
        if len(closed) > STRETCHES_MAX:
            pairs = zip(closed[::2], (*closed[1::2], Stretch()), strict=False)
            closed = tuple(first + second for first, second in pairs)
            size = min(stretch.lines for stretch in closed[:-1])
            if len(self.closed) % 2 == 0:  # the last one had no partner
                return History(closed=closed[:-1], open=closed[-1], size=size)
        return History(closed=closed, size=size)

    @property
    def total(self) -> Stretch:
        """Everything."""
        return sum((*self.closed, self.open), Stretch())

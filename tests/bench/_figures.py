"""Prints the figures of a bench in the form that `tests/run bench` reads."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable, Sequence

_OPERATORS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


def figure(name: str, ratios: Sequence[float], bar: str, unit: str = "ratio") -> None:
    """Print the median of *ratios*, one a round, against *bar* (`>=2`), and their spread."""
    middle = statistics.median(ratios)
    met = _OPERATORS[bar[:2]](middle, float(bar[2:]))
    print(f"figure {name} {middle:.3g} {unit} bar {bar} {'ok' if met else 'short'}", flush=True)
    print(f"  {name}: rounds {' '.join(f'{ratio:.3g}' for ratio in ratios)}", flush=True)

"""Line plots as SVG text: no script, no fonts, no library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH, _HEIGHT = 720, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 24, 28
#: distinguishable also without colour vision
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")

Line = tuple[str, Sequence[tuple[float, float]]]


def plot(title: str, unit: str, lines: Sequence[Line], *, hours: float) -> str:
    """Return one plot over *hours*; points are (s, value)."""
    top = max((value for _, points in lines for _, value in points), default=0.0) or 1.0
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text x="{_LEFT}" y="14" class="title">{escape(title)} ({escape(unit)})</text>',
    ]
    for step in range(5):
        value = top * step / 4
        y = _y(value, top)
        parts.append(
            f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" class="grid"/>'
            f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{value:,.4g}</text>'
        )
    for step in range(7):
        x = _x(hours * 3600 * step / 6, hours)
        parts.append(
            f'<text x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">'
            f"{hours * step / 6:.3g} h</text>"
        )
    for index, (name, points) in enumerate(lines):
        colour = _COLOURS[index % len(_COLOURS)]
        path = " ".join(f"{_x(at_s, hours):.1f},{_y(value, top):.1f}" for at_s, value in points)
        label_x = _WIDTH - _RIGHT - 90 * (len(lines) - index)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
            f'<text x="{label_x}" y="14" fill="{colour}">{escape(name)}</text>'
        )
    return "".join([*parts, "</svg>"])


def _x(at_s: float, hours: float) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * at_s / (hours * 3600)


def _y(value: float, top: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / top

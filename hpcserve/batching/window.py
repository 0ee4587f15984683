"""Completion windows: `24h`, `7d`; hours or days, as a client writes them."""

from __future__ import annotations

import re
from datetime import timedelta

from hpcserve.config.tree import Batching
from hpcserve.errors import RequestError

_WINDOW = re.compile(r"([1-9][0-9]{0,5})([hd])")
_UNIT_S = {"h": 3600, "d": 24 * 3600}


def window(text: str, settings: Batching) -> timedelta:
    """Return the length of a completion window.

    Raises:
        RequestError: not a number with `h` or `d`, or outside the configured bounds.

    """
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * _UNIT_S[match[2]] if match else 0
    if not settings.window_min_s <= seconds <= settings.window_max_s:
        raise RequestError(
            f"completion_window must be hours or days such as `24h` or `7d`, from "
            f"{written(settings.window_min_s)} to {written(settings.window_max_s)}; "
            f"got {text[:40]!r}.",
            code="invalid_value",
            param="completion_window",
        )
    return timedelta(seconds=seconds)


def written(seconds: int) -> str:
    """Write a number of seconds the way `window` reads it, as far as it is whole hours."""
    return f"{seconds // 86400}d" if seconds % 86400 == 0 else f"{seconds / 3600:g}h"

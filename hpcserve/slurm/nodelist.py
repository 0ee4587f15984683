"""Slurm's compressed node lists: `gpu[01-03,07],login1` is five names.

Rules: the width of the first number of a range is kept (`08-11` is 08, 09, 10, 11), several
brackets multiply, the order of the list is kept.
"""

from __future__ import annotations

import re
from itertools import product

from hpcserve.errors import BackendError

_HOST = re.compile(r"(?:[^,\[\]]|\[[^\[\]]*\])+")
_PIECE = re.compile(r"\[([^\[\]]*)\]|([^\[\]]+)")
_RANGE = re.compile(r"(\d+)-(\d+)")

#: names in one list; more is a mistake, not a cluster
MAX_NODES = 100_000


def expand(nodelist: str) -> tuple[str, ...]:
    """Return the names, none for Slurm's ways to say that there is none.

    Raises:
        BackendError: this is no node list.

    """
    if nodelist in {"", "(null)", "None", "None assigned", "N/A"}:
        return ()
    hosts = _HOST.findall(nodelist)
    if ",".join(hosts) != nodelist:
        raise BackendError(f"Slurm reports {nodelist!r}, which is no node list", retryable=False)
    return tuple(name for host in hosts for name in _expand_host(host))


def _expand_host(host: str) -> list[str]:
    pieces = [
        _numbers(match[1], host) if match[1] is not None else [match[2]]
        for match in _PIECE.finditer(host)
    ]
    return ["".join(parts) for parts in product(*pieces)]


def _numbers(inside: str, host: str) -> list[str]:
    numbers: list[str] = []
    for item in inside.split(","):
        if item.isdigit():
            numbers.append(item)
            continue
        match = _RANGE.fullmatch(item)
        first, last = (int(match[1]), int(match[2])) if match else (1, 0)
        if match is None or not 0 <= last - first < MAX_NODES:
            raise BackendError(f"Slurm reports {host!r}, which is no node list", retryable=False)
        numbers += [str(number).zfill(len(match[1])) for number in range(first, last + 1)]
    return numbers

"""How leases and results travel between agent and gateway: lines of JSON, payloads as they are.

A lease is a header line, then for each request a line of its particulars and the raw body. Results
are a header line, then for each a line of its particulars and the finished line of the output or
error file. Payloads are never parsed here; that they hold no newline is checked where they arise
(a line of a JSONL file cannot, and the agent writes its results in one line).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from hpcserve.domain.batch import RequestEvent
from hpcserve.errors import RequestError
from hpcserve.ports.control import Grant, GrantedLine, Outcome

CONTENT_TYPE = "application/x-ndjson"


def dump_grant(grant: Grant) -> bytes:
    """Return a lease as lines."""
    lines = [
        _line(
            lease_id=grant.lease_id,
            batch_id=grant.batch_id,
            route=grant.route,
            expires_at=grant.expires_at.isoformat(),
        )
    ]
    for line in grant.lines:
        lines.append(_line(line_no=line.line_no, custom_id=line.custom_id, attempts=line.attempts))
        lines.append(line.body)
    return b"\n".join(lines)


def load_grant(data: bytes) -> Grant:
    """Read what `dump_grant` wrote; raises RequestError when it is something else."""
    header, pairs = _parse(data, "lease")
    try:
        return Grant(
            lease_id=header["lease_id"],
            batch_id=header["batch_id"],
            route=header["route"],
            expires_at=datetime.fromisoformat(header["expires_at"]),
            lines=tuple(GrantedLine(**fields, body=payload) for fields, payload in pairs),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"The lease lacks a field or has one too many: {error}.") from error


def dump_outcomes(lease_id: int, outcomes: Sequence[Outcome]) -> bytes:
    """Return results of one lease as lines."""
    lines = [_line(lease_id=lease_id)]
    for outcome in outcomes:
        lines.append(
            _line(
                line_no=outcome.line_no,
                event=outcome.event,
                input_tokens=outcome.input_tokens,
                cached_tokens=outcome.cached_tokens,
                output_tokens=outcome.output_tokens,
            )
        )
        lines.append(outcome.line)
    return b"\n".join(lines)


def load_outcomes(data: bytes) -> tuple[int, tuple[Outcome, ...]]:
    """Read what `dump_outcomes` wrote; raises RequestError when it is something else."""
    header, pairs = _parse(data, "results")
    try:
        return header["lease_id"], tuple(
            Outcome(**{**fields, "event": RequestEvent(fields["event"])}, line=payload)
            for fields, payload in pairs
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"The results lack a field or have one too many: {error}.") from error


def _line(**fields: object) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def _parse(data: bytes, noun: str) -> tuple[dict[str, Any], Iterator[tuple[Any, bytes]]]:
    lines = data.split(b"\n")
    if len(lines) % 2 == 0:
        raise RequestError(f"The {noun} were cut short after {len(lines)} lines.")
    try:
        header, *particulars = [json.loads(line) for line in (lines[0], *lines[1::2])]
    except ValueError as error:
        raise RequestError(f"The {noun} hold a line that is not JSON: {error}.") from error
    return header, zip(particulars, lines[2::2], strict=True)

"""The bodies of leased lines, out of an input that must be what it was."""

from __future__ import annotations

import os

import msgspec

from hpcserve.batching.envelope import decode_payload
from hpcserve.batching.input_file import unchanged
from hpcserve.domain.batch import InputFile, LeasedRequest
from hpcserve.errors import RequestError
from hpcserve.ports.control import GrantedLine


def read_bodies(
    file: InputFile | None, requests: tuple[LeasedRequest, ...]
) -> tuple[GrantedLine, ...]:
    """Return the leased lines with their bodies.

    Raises:
        RequestError: the file has vanished or is not what was validated.

    """
    with unchanged(file) as opened:
        fd = opened.fileno()
        raw = [os.pread(fd, request.length, request.offset) for request in requests]
    try:
        payloads = [decode_payload(line) for line in raw]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RequestError(
            f"The input file does not hold what was validated ({error}); "
            "it was changed without a trace.",
            code="input_file_changed",
            param="input_file_id",
        ) from error
    return tuple(
        GrantedLine(
            line_no=request.line_no,
            custom_id=payload.custom_id,
            attempts=request.attempts,
            body=bytes(payload.body),
        )
        for request, payload in zip(requests, payloads, strict=True)
    )

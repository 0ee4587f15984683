"""Brings prompts to the gateway: a file of batch lines as it lies, or a table row by row.

A batch file is registered by its path where the gateway allows that, else uploaded. Rows are
uploaded while they are read, in constant memory; a mistake in one breaks the upload off, and then
nothing of it is left on the server.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from hpcserve.batching.tables import Table
from hpcserve.batching.template import Prompting
from hpcserve.cli.client import call, check, unreachable
from hpcserve.errors import RefusedError, RequestError

#: sent at a time
_BLOCK_BYTES = 256 * 1024
_DEFAULT_ROUTE = "/v1/chat/completions"
_BOM = b"\xef\xbb\xbf"
#: between the parts of an upload: a line beginning with two dashes, which no line of JSON does
_BOUNDARY = "hpcserve-5f1b2c7de04a9386"


@dataclass(frozen=True, slots=True)
class Brought:
    """An input file that the gateway knows."""

    file_id: str
    #: the endpoint of its lines
    route: str


@contextmanager
def opened(path: Path | None) -> Iterator[BinaryIO]:
    """Open a file, or standard input when *path* is None; say what is wrong in one sentence."""
    if path is None:
        yield sys.stdin.buffer
        return
    try:
        stream = path.open("rb")
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.") from error
    with stream:
        yield stream


def bring_lines(
    client: httpx.Client, path: Path | None, model: str | None, *, max_line_bytes: int
) -> Brought:
    """Bring lines of OpenAI's batch format; *model*, when given, must be theirs.

    One look at the first line is enough: the server holds all others to be like it.
    """
    name = str(path) if path is not None else "standard input"
    with opened(path) as stream:
        first = stream.readline(max_line_bytes + 1)
        if not first:
            raise RequestError(f"{name} is empty; it needs a line for each request.")
        url, its_model = _look(first)
        if model is not None and its_model is not None and its_model != model:
            raise RequestError(
                f"{name}: line 1 asks for the model {its_model!r}, but --model says {model!r}.",
                param="model",
            )
        if path is not None:
            registered = _register(client, path)
            if registered is not None:
                return Brought(registered, url)
        rest = iter(lambda: stream.read(_BLOCK_BYTES), b"")
        file_name = path.name if path is not None else "stdin.jsonl"
        return Brought(_upload(client, file_name, chain((first,), rest), name), url)


def bring_rows(client: httpx.Client, table: Table, prompting: Prompting) -> Brought:
    """Bring each row of a table as a line that *prompting* makes of it."""
    lines = (prompting.line(row) for row in table.rows(prompting.columns))
    file_name = f"{Path(table.name).stem}.jsonl"
    file_id = _upload(client, file_name, _blocks(lines, table.name), table.name)
    return Brought(file_id, prompting.endpoint)


def _blocks(lines: Iterable[bytes], name: str) -> Iterator[bytes]:
    held: list[bytes] = []
    size = total = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _BLOCK_BYTES:
            yield b"".join(held)
            held, total, size = [], total + size, 0
    if held:
        yield b"".join(held)
    elif not total:
        raise RequestError(f"{name} has no rows.")


def _look(line: bytes) -> tuple[str, str | None]:
    """Return url and model of the first line; the server says what is wrong with it, if it is."""
    try:
        request = json.loads(line.removeprefix(_BOM))
        url = request["url"]
        model = request["body"].get("model")
    except (ValueError, TypeError, KeyError, AttributeError):
        return _DEFAULT_ROUTE, None
    return str(url), model if isinstance(model, str) else None


def _register(client: httpx.Client, path: Path) -> str | None:
    """Let the gateway read a file where it lies; None when it must be uploaded."""
    if "HPCSERVE_URL" in os.environ:
        return None
    body = {"path": str(path.resolve())}
    try:
        answer = call(client, "POST", "/hpcserve/v1/files", body=body)
    except RefusedError as error:
        if error.code == "upload_required":
            return None
        raise
    return str(answer["id"])


def _upload(client: httpx.Client, file_name: str, blocks: Iterable[bytes], source: str) -> str:
    """Send a file while it is made, and return its id."""
    try:
        response = client.post(
            "/v1/files",
            content=_form(file_name, blocks, source),
            headers={"content-type": f"multipart/form-data; boundary={_BOUNDARY}"},
            timeout=None,
        )
    except httpx.TransportError as error:
        raise unreachable(error) from error
    check(response)
    answer: dict[str, Any] = response.json()
    return str(answer["id"])


def _form(file_name: str, blocks: Iterable[bytes], source: str) -> Iterator[bytes]:
    """Yield a form with the fields `purpose` and `file`, as browsers write it."""
    quoted = file_name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
    field = f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n'
    yield (field % ("purpose", "") + "batch\r\n").encode()
    yield (field % ("file", f'; filename="{quoted}"')).encode()
    try:
        yield from blocks
    except OSError as error:
        raise RequestError(f"{source} cannot be read any further: {error.strerror}.") from error
    yield f"\r\n--{_BOUNDARY}--\r\n".encode()

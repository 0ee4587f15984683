"""A multipart upload, parsed while it arrives: small fields stay in memory, the file goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from hpcserve.errors import RequestError

#: bytes of one field that is not the file, and of one part's head
_FIELD_MAX = 16 * 1024
#: fields of one upload
_FIELDS_MAX = 32


class Form:
    """The parser of one upload; the part named `file` goes to *write* piece by piece."""

    def __init__(self, content_type: str, write: Callable[[bytes], Awaitable[None]]) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise RequestError(
                "Send the file as multipart/form-data with the fields `purpose` and `file`.",
                code="invalid_content_type",
            )
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self._write = write
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._name: str | None = None
        self._field = bytearray()
        self._pieces: list[bytes] = []
        self._is_complete = False
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._on_part_begin,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_end": self._on_end,
            },
        )

    async def read(self, blocks: AsyncIterator[bytes]) -> None:
        """Read the whole request.

        Raises:
            RequestError: it is no form, ends early, or has no file.

        """
        async for block in blocks:
            try:
                self._parser.write(block)
            except FormParserError as error:
                raise RequestError(f"The upload is no valid form: {error}.") from error
            if self._pieces:
                data, self._pieces = b"".join(self._pieces), []
                await self._write(data)
        if not self._is_complete:
            raise RequestError("The upload ended early; send it again.", code="incomplete_upload")
        if self.filename is None:
            raise RequestError(
                "The form has no part `file`.", code="missing_required_parameter", param="file"
            )

    def _on_part_begin(self) -> None:
        self._name = None
        self._field.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._grow(self._header[0], data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._grow(self._header[1], data[start:end])

    def _on_header_end(self) -> None:
        name, value = (bytes(part) for part in self._header)
        self._header = (bytearray(), bytearray())
        if name.lower() != b"content-disposition":
            return
        _, options = parse_options_header(value)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file":
            if self.filename is not None:
                raise RequestError("The form has two files; send one.", param="file")
            self.filename = options.get(b"filename", b"").decode("utf-8", "replace")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._pieces.append(data[start:end])
        else:
            self._grow(self._field, data[start:end])

    def _on_part_end(self) -> None:
        if self._name is None or self._name == "file":
            return
        if len(self.fields) >= _FIELDS_MAX:
            raise RequestError(f"The form has more than {_FIELDS_MAX} fields.")
        self.fields[self._name] = self._field.decode("utf-8", "replace")

    def _on_end(self) -> None:
        self._is_complete = True

    @staticmethod
    def _grow(text: bytearray, data: bytes) -> None:
        if len(text) + len(data) > _FIELD_MAX:
            raise RequestError(f"A field of the form is longer than {_FIELD_MAX} bytes.")
        text += data

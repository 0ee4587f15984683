"""Tables of rows: CSV, TSV, JSONL objects, Parquet; read one row at a time, in constant memory.

Text is UTF-8, with or without a byte order mark. Each error is one sentence that names the file and
the line (of Parquet: the row), so that its owner can mend it. Nothing is guessed: a CSV row with
too few or too many fields is an error.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import BinaryIO, NamedTuple

import msgspec

from hpcserve.errors import RequestError

#: rows of a Parquet file that are in memory at a time
_PARQUET_ROWS = 1024
_BOM = "\ufeff"


class Kind(StrEnum):
    """How a table is written."""

    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    PARQUET = "parquet"


_KINDS = {
    ".csv": Kind.CSV,
    ".tsv": Kind.TSV,
    ".tab": Kind.TSV,
    ".jsonl": Kind.JSONL,
    ".ndjson": Kind.JSONL,
    ".parquet": Kind.PARQUET,
    ".pq": Kind.PARQUET,
}


class Row(NamedTuple):
    """One row; a tuple, since millions are made."""

    #: counted from 1
    number: int
    #: file and line, for messages
    where: str
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that is open."""

    #: as messages call it
    name: str
    stream: BinaryIO
    kind: Kind
    #: longest line, bytes
    max_line_bytes: int

    def rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """Yield the rows; only *columns* are sure to be in them.

        Raises:
            RequestError: the table cannot be read, or has no such column.

        """
        readers: dict[Kind, Callable[[Sequence[str]], Iterator[Row]]] = {
            Kind.CSV: self._separated,
            Kind.TSV: self._separated,
            Kind.JSONL: self._objects,
            Kind.PARQUET: self._parquet,
        }
        try:
            yield from readers[self.kind](columns)
        except OSError as error:
            raise RequestError(f"{self.name} cannot be read any further: {error}.") from error

    def _lines(self) -> Iterator[tuple[int, str]]:
        number = 0
        while line := self.stream.readline(self.max_line_bytes + 1):
            number += 1
            if len(line) > self.max_line_bytes:
                raise self._fault(number, f"is longer than {self.max_line_bytes} bytes")
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise self._fault(number, f"is not UTF-8 ({error.reason})") from error
            if "\0" in text:
                raise self._fault(number, "holds a NUL byte; is it text?")
            yield number, text.removeprefix(_BOM) if number == 1 else text

    def _separated(self, columns: Sequence[str]) -> Iterator[Row]:
        csv.field_size_limit(self.max_line_bytes)
        last = 0

        def text() -> Iterator[str]:
            nonlocal last
            for last, line in self._lines():  # noqa: B007 - read by who consumes this
                yield line

        delimiter = "\t" if self.kind is Kind.TSV else ","
        reader = csv.reader(text(), delimiter=delimiter, strict=True)
        try:
            header = next(reader, None)
            if not header:
                raise RequestError(f"{self.name} is empty; its first line must name the columns.")
            self._check(header, columns)
            number, began = 0, last + 1
            for fields in reader:
                if fields:
                    number += 1
                    where = f"{self.name}: line {began}"
                    if len(fields) != len(header):
                        raise RequestError(
                            f"{where} has {len(fields)} fields, but the header {len(header)}."
                        )
                    yield Row(number, where, dict(zip(header, fields, strict=True)))
                began = last + 1
        except csv.Error as error:
            raise self._fault(last, f"is no valid {self.kind.upper()}: {error}") from error

    def _objects(self, _: Sequence[str]) -> Iterator[Row]:
        decode = msgspec.json.Decoder(dict[str, object]).decode
        count = 0
        for number, line in self._lines():
            if line.isspace():
                continue
            count += 1
            try:
                values = decode(line)
            except msgspec.DecodeError as error:
                raise self._fault(number, f"is no JSON object: {error}") from error
            yield Row(count, f"{self.name}: line {number}", values)

    def _parquet(self, columns: Sequence[str]) -> Iterator[Row]:
        try:
            import pyarrow as pa  # noqa: PLC0415 - an extra, and slow to import
            from pyarrow import parquet  # noqa: PLC0415 - the same
        except ImportError as error:
            raise RequestError(
                f"{self.name} is a Parquet file, and pyarrow, which reads them, is not installed: "
                "`pip install 'hpcserve[parquet]'`, or convert it to CSV."
            ) from error
        if not self.stream.seekable():
            raise RequestError("A Parquet file cannot be read from a pipe; give its path.")
        number = 0
        try:
            file = parquet.ParquetFile(self.stream)
            self._check(file.schema_arrow.names, columns)
            for block in file.iter_batches(batch_size=_PARQUET_ROWS, columns=list(columns)):
                for values in block.to_pylist():
                    number += 1
                    yield Row(number, f"{self.name}: row {number}", values)
        except pa.ArrowException as error:
            raise RequestError(
                f"{self.name} is no valid Parquet file behind row {number}: {error}"
            ) from error

    def _check(self, header: Sequence[str], columns: Sequence[str]) -> None:
        repeated = [name for name in header if header.count(name) > 1]
        if repeated:
            raise RequestError(f"{self.name} has the column {repeated[0]!r} twice.")
        for column in columns:
            if column not in header:
                raise RequestError(
                    f"{self.name} has no column {column!r}; it has: {', '.join(header)}.",
                    param=column,
                )

    def _fault(self, line: int, what: str) -> RequestError:
        return RequestError(f"{self.name}: line {line} {what}.")


def kind_of(name: str) -> Kind | None:
    """Return how a file of this name is written; None: its name does not say."""
    return _KINDS.get(PurePath(name).suffix.lower())

"""Rows are read one by one, and what is wrong with a table is said with its line."""

from __future__ import annotations

import io
from collections.abc import Sequence

import pytest

from hpcserve.batching.tables import Kind, Table, kind_of
from hpcserve.errors import RequestError


def read(
    data: bytes, kind: Kind = Kind.CSV, columns: Sequence[str] = ("text",)
) -> list[tuple[int, str, dict[str, object]]]:
    table = Table(name="data", stream=io.BytesIO(data), kind=kind, max_line_bytes=64)
    return [(row.number, row.where, dict(row.values)) for row in table.rows(columns)]


def test_quotes_line_ends_bom_and_empty_lines_of_csv() -> None:
    data = '\ufeffid,text\r\n1,"a ""b"",\nc"\r\n\r\n2,é\r\n'.encode()
    assert read(data) == [
        (1, "data: line 2", {"id": "1", "text": 'a "b",\nc'}),
        (2, "data: line 5", {"id": "2", "text": "é"}),
    ]


def test_tabs_separate_tsv() -> None:
    assert read(b"text\tn\na,b\t\n", Kind.TSV) == [(1, "data: line 2", {"text": "a,b", "n": ""})]


def test_each_line_of_jsonl_is_a_row() -> None:
    data = b'{"text": "a", "n": [1]}\n\n{"other": null}'
    assert read(data, Kind.JSONL) == [
        (1, "data: line 1", {"text": "a", "n": [1]}),
        (2, "data: line 3", {"other": None}),
    ]


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (b"", Kind.CSV, "data is empty; its first line must name the columns."),
        (b"id\n1\n", Kind.CSV, "data has no column 'text'; it has: id."),
        (b"text,text\n", Kind.CSV, "data has the column 'text' twice."),
        (b"text,n\na\n", Kind.CSV, "data: line 2 has 1 fields, but the header 2."),
        (b"text\na\n\xff\n", Kind.CSV, "data: line 3 is not UTF-8 (invalid start byte)."),
        (b"text\n" + b"x" * 65 + b"\n", Kind.CSV, "data: line 2 is longer than 64 bytes."),
        (b'text\n"a\n', Kind.CSV, "data: line 2 is no valid CSV: unexpected end of data."),
        (b"text\n\0\n", Kind.CSV, "data: line 2 holds a NUL byte"),
        (b'{"text": 1}\n[1]\n', Kind.JSONL, "data: line 2 is no JSON object: "),
        (b'{"text": 1}\n{"te', Kind.JSONL, "data: line 2 is no JSON object: "),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(data: bytes, kind: Kind, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(data, kind)
    assert caught.value.message.startswith(said)


def test_rows_before_the_mistake_are_not_held_back() -> None:
    table = Table(
        name="data", stream=io.BytesIO(b"text\na\nb,c\n"), kind=Kind.CSV, max_line_bytes=64
    )
    rows = table.rows(("text",))
    assert next(rows).values == {"text": "a"}
    with pytest.raises(RequestError):
        next(rows)


def test_a_disk_that_fails_is_an_error_of_the_table() -> None:
    class Vanishing(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            line = super().readline(size)
            if line == b"b\n":
                raise OSError(116, "Stale file handle")
            return line

    table = Table(name="data", stream=Vanishing(b"text\na\nb\n"), kind=Kind.CSV, max_line_bytes=64)
    rows = table.rows(("text",))
    next(rows)
    with pytest.raises(RequestError, match=r"data cannot be read any further: .*Stale"):
        next(rows)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.CSV", Kind.CSV), ("b.x.pq", Kind.PARQUET), ("c.ndjson", Kind.JSONL), ("d.txt", None)],
)
def test_the_name_says_the_kind(name: str, kind: Kind | None) -> None:
    assert kind_of(name) is kind

"""`hpcserve batch submit`: tables become requests; what is wrong is said, and nothing enqueued."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from hpcserve.cli.batch import app
from tests.contract.batch_cli.conftest import Shell

ROWS = ("--template", "Classify: {text}", "--id-column", "id", "--model", "m", "--max-tokens", "3")
#: ids and texts with all that CSV has to quote
DATA = {"a-1": "plain", "b 2": 'with "quotes", and\na second line', "ü3": "é 漢字 {braces}"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": f"Classify: {text}"}


def written(kind: str) -> bytes:
    if kind == "jsonl":
        rows = [json.dumps({"id": id_, "text": text, "n": 1}) for id_, text in DATA.items()]
        return "\n".join(rows).encode()
    if kind == "parquet":
        table = pa.table({"id": list(DATA), "text": list(DATA.values()), "n": [1, 2, 3]})
        sink = io.BytesIO()
        parquet.write_table(table, sink)
        return sink.getvalue()
    separator = "\t" if kind == "tsv" else ","
    rows = [separator.join(("id", "text"))]
    for id_, text in DATA.items():
        quoted = text.replace('"', '""')
        rows.append(f'{id_}{separator}"{quoted}"')
    return "\r\n".join(rows).encode()


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_row_is_asked_once_and_answered(hpcserve: Shell, kind: str) -> None:
    name = hpcserve.write(f"data.{kind}", written(kind))
    options = ("--system", "Be brief.", "--param", "temperature=0", "--param", "user=ada")
    batch_id = hpcserve("submit", name, *ROWS, *options)[0].strip()
    output, _ = hpcserve("wait", batch_id)
    assert "completed: 3 done, 0 failed, 3 in all" in output
    assert hpcserve.bodies(batch_id) == {
        id_: {
            "model": "m",
            "messages": [{"role": "system", "content": "Be brief."}, user(text)],
            "max_tokens": 3,
            "temperature": 0,
            "user": "ada",
        }
        for id_, text in DATA.items()
    }
    output, _ = hpcserve("results", batch_id)
    assert [json.loads(line)["custom_id"] for line in output.splitlines()] == list(DATA)


def test_standard_input_holds_rows_or_lines(hpcserve: Shell) -> None:
    batch_id, _ = hpcserve("submit", "-", "--format", "csv", *ROWS, data=written("csv"))
    assert hpcserve.bodies(batch_id.strip()).keys() == DATA.keys()
    line = {"custom_id": "x", "method": "POST", "url": "/v1/completions"}
    lines = json.dumps({**line, "body": {"model": "m", "prompt": "p", "max_tokens": 2}}).encode()
    batch_id, _ = hpcserve("submit", "-", "--model", "m", "--wait", data=lines)
    assert hpcserve.bodies(batch_id.split()[0])["x"]["prompt"] == "p"


def test_rows_without_an_id_are_numbered(hpcserve: Shell) -> None:
    name = hpcserve.write("data.csv", "text\na\nb\n")
    batch_id, _ = hpcserve("submit", name, "--template", "{text}", "--model", "m")
    assert list(hpcserve.bodies(batch_id.strip())) == ["row-1", "row-2"]


def test_other_endpoints_get_the_prompt_where_they_take_it(hpcserve: Shell) -> None:
    name = hpcserve.write("data.csv", "text\na\n")
    options = ("--template", "{text}", "--model", "m", "--endpoint", "/v1/embeddings")
    batch_id, _ = hpcserve("submit", name, *options)
    assert hpcserve.bodies(batch_id.strip()) == {"row-1": {"model": "m", "input": "a"}}


def _rows(text: str) -> str:
    return f"id,text\n1,a\n{text}"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("d.csv", "id,body\n1,a\n", "d.csv has no column 'text'; it has: id, body."),
        ("d.csv", _rows("2\n"), "d.csv: line 3 has 1 fields, but the header 2."),
        ("d.csv", _rows("2,b\0\n"), "d.csv: line 3 holds a NUL byte; is it text?"),
        ("d.csv", "id,text\n", "d.csv has no rows."),
        (
            "d.jsonl",
            '{"id": 1, "text": "a"}\n{"id": 2}\n',
            "line 2 has no column 'text'; it has: id.",
        ),
        ("d.parquet", "PAR1 but no Parquet", "d.parquet is no valid Parquet file behind row 0: "),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_enqueued(
    hpcserve: Shell, name: str, data: str | bytes, said: str
) -> None:
    before, uploads = hpcserve.batches(), hpcserve.site.state / "batches" / "uploads"
    files = sorted(uploads.iterdir())
    _, errors = hpcserve("submit", hpcserve.write(name, data), *ROWS, code=1)
    assert said in errors
    assert errors.startswith("hpcserve: ")
    assert errors.count("\n") == 1
    assert hpcserve.batches() == before
    hpcserve.site.wait("the broken upload is gone", lambda: sorted(uploads.iterdir()) == files, 5)


def test_a_file_that_cannot_be_read_is_named(hpcserve: Shell) -> None:
    for options in (ROWS, ()):
        _, errors = hpcserve("submit", "gone.csv" if options else "gone.jsonl", *options, code=1)
        assert "cannot be read: No such file or directory." in errors
        _, errors = hpcserve(
            "submit", ".", *options, *(("--format", "csv") * bool(options)), code=1
        )
        assert "cannot be read: Is a directory." in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("d.csv",), "--template says what to ask of a row"),
        (("d.csv", "--template", "{text}"), "--template needs --model"),
        (("d.txt", "--template", "{text}", "--model", "m"), "--format says whether"),
        (("d.jsonl", "--id-column", "id"), "--id-column is for rows of a table"),
        (("d.csv", "--template", "{t}", "--model", "m", "--format", "xml"), "choose one of csv"),
        (("d.csv", "--template", "{t}", "--model", "m", "--param", "x"), "write NAME=VALUE"),
    ],
)
def test_options_that_contradict_are_a_matter_of_usage(
    hpcserve: Shell, arguments: tuple[str, ...], said: str
) -> None:
    # refused before anything is asked of the site: no process of its own is needed
    done = CliRunner().invoke(app, ["submit", *arguments], env=hpcserve.site.env)
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())


def test_the_model_must_be_that_of_the_lines(hpcserve: Shell) -> None:
    line = {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"model": "m"}}
    name = hpcserve.write("lines.jsonl", json.dumps(line))
    _, errors = hpcserve("submit", name, "--model", "other", code=1)
    assert "line 1 asks for the model 'm', but --model says 'other'." in errors


def test_what_only_the_server_can_know_comes_back_at_once(hpcserve: Shell) -> None:
    name = hpcserve.write("twice.csv", "id,text\n1,a\n1,b\n")
    output, errors = hpcserve("submit", name, *ROWS, code=1)
    assert "is failed" in errors
    assert "line 2: " in errors
    assert "duplicate_custom_id" in errors
    assert hpcserve.site.batch(output.strip())["request_counts"]["total"] == 0


def test_memory_does_not_grow_with_the_table(hpcserve: Shell) -> None:
    code = (
        "from pathlib import Path; from hpcserve.__main__ import main\n"
        "try: main()\n"
        "finally: print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )

    def peak_kib(rows: int) -> int:
        with (hpcserve.folder / "big.csv").open("w") as file:
            file.write("id,text\n")
            file.writelines(f"{n},{'x' * 500}\n" for n in range(rows))
        done = subprocess.run(
            [sys.executable, "-c", code, "batch", "submit", "big.csv", *ROWS],
            env=hpcserve.site.env,
            cwd=hpcserve.folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        batch_id, peak = done.stdout.split()
        with hpcserve.site.client() as client:
            client.post(f"/v1/batches/{batch_id}/cancel")  # the small one may be done
        return int(peak)

    small, large = peak_kib(1_000), peak_kib(60_000)
    assert large < small + 8 * 1024

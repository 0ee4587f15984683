"""Rows become lines of OpenAI's batch format."""

from __future__ import annotations

import json

import pytest

from hpcserve.batching.tables import Row
from hpcserve.batching.template import Prompting, Template
from hpcserve.errors import RequestError


def row(**values: object) -> Row:
    return Row(3, "data.csv: line 4", values)


def test_columns_go_where_the_template_says_and_doubled_braces_stay() -> None:
    template = Template('Give JSON {{"label": ...}} for {title}: {text}{title}')
    assert template.columns == ("title", "text")
    assert template.fill(row(title="T{x}", text="a", other=1)) == (
        'Give JSON {"label": ...} for T{x}: aT{x}'
    )


def test_what_is_no_string_goes_in_as_json() -> None:
    assert Template("{a} {b}").fill(row(a=[1, "x"], b=True)) == '[1,"x"] true'


@pytest.mark.parametrize("text", ["{a", "a}", "{}", "{a!r}", "{a:>8}", "no column"])
def test_a_template_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="template"):
        Template(text)


@pytest.mark.parametrize(
    ("values", "said"),
    [({"other": "x"}, "has no column 'text'; it has: other"), ({"text": None}, "has nothing in")],
)
def test_a_missing_value_names_file_and_line(values: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=r"^data\.csv: line 4 " + said):
        Template("{text}").fill(row(**values))


def test_a_line_is_complete() -> None:
    prompting = Prompting(
        model="m",
        template=Template("Classify: {text}"),
        id_column="doc",
        system="Be brief.",
        max_tokens=8,
        params={"temperature": 0},
    )
    assert prompting.columns == ("text", "doc")
    line = prompting.line(row(text="é\n", doc=17))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == {
        "custom_id": "17",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Classify: é\n"},
            ],
            "max_tokens": 8,
            "temperature": 0,
        },
    }


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("/v1/completions", {"model": "m", "prompt": "a", "max_tokens": 5}),
        ("/v1/responses", {"model": "m", "input": "a", "max_output_tokens": 5}),
    ],
)
def test_each_endpoint_has_its_own_words(endpoint: str, body: object) -> None:
    prompting = Prompting(model="m", template=Template("{t}"), endpoint=endpoint, max_tokens=5)
    line = json.loads(prompting.line(row(t="a")))
    assert (line["custom_id"], line["url"], line["body"]) == ("row-3", endpoint, body)


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoint": "/v1/audio"},
        {"endpoint": "/v1/embeddings", "system": "x"},
        {"endpoint": "/v1/embeddings", "max_tokens": 3},
        {"params": {"model": "other"}},
        {"params": {"messages": []}},
        {"params": {"max_tokens": 3}, "max_tokens": 4},
    ],
)
def test_contradictions_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RequestError):
        Prompting(**{"model": "m", "template": Template("{t}"), **wrong})

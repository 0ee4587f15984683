"""Rows become requests: a template with `{column}` in it, and what is the same in all lines.

`{{` and `}}` stand for braces. A column that is missing or null is an error of its row; nothing is
guessed. Strings go in as they are, everything else as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import Formatter

import msgspec

from hpcserve.batching.tables import Row
from hpcserve.errors import RequestError

#: endpoint -> where the prompt goes, and the name of the limit on the answer's tokens
_PLACES = {
    "/v1/chat/completions": ("messages", "max_tokens"),
    "/v1/completions": ("prompt", "max_tokens"),
    "/v1/responses": ("input", "max_output_tokens"),
    "/v1/embeddings": ("input", None),
}
_ENCODER = msgspec.json.Encoder()


class Template:
    """A text with columns in it."""

    def __init__(self, text: str) -> None:
        """Take it apart; raise RequestError when it cannot be."""
        try:
            parts = tuple(Formatter().parse(text))
        except ValueError as error:
            raise _unreadable(str(error)) from error
        for _, column, spec, conversion in parts:
            if column is not None and (not column or spec or conversion):
                written = "".join((column, f"!{conversion}" if conversion else "", spec or ""))
                raise _unreadable(f"{{{written}}} is not the name of a column")
        self._parts = tuple((literal, column) for literal, column, _, _ in parts)
        self.columns = tuple(dict.fromkeys(c for _, c in self._parts if c is not None))
        if not self.columns:
            raise RequestError(
                "The template names no column, so that all prompts would be the same; write "
                "{column} where a row's text goes.",
                param="template",
            )

    def fill(self, row: Row) -> str:
        """Return the prompt of one row."""
        return "".join(
            literal if column is None else literal + text_of(row, column)
            for literal, column in self._parts
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompting:
    """Makes the line of OpenAI's batch format that stands for a row."""

    model: str
    template: Template
    endpoint: str = "/v1/chat/completions"
    #: None: the custom_id is `row-N`, with N counted from 1
    id_column: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    #: further fields of the body (`temperature`)
    params: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what the endpoint has no place for."""
        if self.endpoint not in _PLACES:
            raise RequestError(
                f"Rows cannot be sent to {self.endpoint!r}; choose one of {', '.join(_PLACES)}.",
                param="endpoint",
            )
        place, limit = _PLACES[self.endpoint]
        if self.system is not None and place != "messages":
            raise RequestError(f"{self.endpoint} takes no system prompt.", param="system")
        if self.max_tokens is not None and limit is None:
            raise RequestError(f"{self.endpoint} takes no limit of tokens.", param="max_tokens")
        taken = {"model": "the model has an option of its own", place: "the template makes it"}
        if self.max_tokens is not None and limit is not None:
            taken[limit] = "the limit of tokens has an option of its own"
        for name in self.params.keys() & taken.keys():
            raise RequestError(f"The parameter {name!r} is given twice: {taken[name]}.", param=name)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it reads."""
        ids = () if self.id_column is None else (self.id_column,)
        return tuple(dict.fromkeys((*self.template.columns, *ids)))

    def line(self, row: Row) -> bytes:
        """Return one line, with its line end.

        Raises:
            RequestError: a column is missing or null; names file and line.

        """
        custom_id = f"row-{row.number}"
        if self.id_column is not None:
            custom_id = text_of(row, self.id_column)
        place, limit = _PLACES[self.endpoint]
        body: dict[str, object] = {"model": self.model, place: self._prompt(row, place)}
        if self.max_tokens is not None and limit is not None:
            body[limit] = self.max_tokens
        request = {
            "custom_id": custom_id,
            "method": "POST",
            "url": self.endpoint,
            "body": {**body, **self.params},
        }
        return _ENCODER.encode(request) + b"\n"

    def _prompt(self, row: Row, place: str) -> object:
        text = self.template.fill(row)
        if place != "messages":
            return text
        message = {"role": "user", "content": text}
        if self.system is None:
            return [message]
        # first and the same in all lines: the engine's prefix cache keeps it
        return [{"role": "system", "content": self.system}, message]


def _unreadable(why: str) -> RequestError:
    return RequestError(
        f"The template cannot be read: {why}; write {{column}} for a column, and {{{{ and }}}} for "
        "braces.",
        param="template",
    )


def text_of(row: Row, column: str) -> str:
    """Return the text of one column of a row."""
    if column not in row.values:
        raise RequestError(
            f"{row.where} has no column {column!r}; it has: {', '.join(row.values) or 'none'}.",
            param=column,
        )
    value = row.values[column]
    if value is None:
        raise RequestError(f"{row.where} has nothing in the column {column!r}.", param=column)
    return value if isinstance(value, str) else _ENCODER.encode(value).decode()

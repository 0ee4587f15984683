"""JSON bodies, checked by pydantic; what is wrong becomes OpenAI's 400, not FastAPI's 422."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from hpcserve.errors import RequestError

M = TypeVar("M", bound=BaseModel)


def parsed(model: type[M], body: bytes) -> M:
    """Return the body as *model*.

    Raises:
        RequestError: it is no JSON, or a field is missing or wrong; names the first one.

    """
    try:
        return model.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(
            f"{where}: {first['msg']}." if where else f"The body is no valid JSON: {first['msg']}.",
            code="missing_required_parameter" if first["type"] == "missing" else "invalid_value",
            param=where or None,
        ) from error

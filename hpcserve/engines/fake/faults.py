"""Faults that a fake engine shows on demand, by flag or by `POST /fake/faults`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Literal

from hpcserve.errors import RequestError

TokenFault = Literal["stall", "malformed", "error", "disconnect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong from now on; the token counts act on each answer, streamed or whole."""

    #: a prompt that contains this text kills the whole process at once, like a fault of the GPU
    crash_marker: str | None = None
    #: a prompt that contains this text is refused with 400
    reject_marker: str | None = None
    #: share of the requests that get a 500, 0..1
    error_ratio: float = 0.0
    #: after so many tokens the sequence keeps its slot and says nothing more
    stall_after_tokens: int | None = None
    #: after so many tokens comes an event that is not JSON
    malformed_after_tokens: int | None = None
    #: after so many tokens comes vLLM's error event, then `[DONE]`, all inside status 200
    error_after_tokens: int | None = None
    #: after so many tokens the connection is reset
    disconnect_after_tokens: int | None = None
    #: streams end cleanly but without `[DONE]`
    omit_done: bool = False
    #: `/health` answers 503
    unhealthy: bool = False

    @classmethod
    def from_json(cls, text: str | bytes) -> Faults:
        """Read an object whose keys are the fields; raise RequestError that names what is wrong."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise RequestError(f"faults: not JSON: {error}") from error
        if not isinstance(raw, Mapping):
            raise RequestError("faults: a JSON object is needed")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(raw) - known):
            raise RequestError(
                f"faults: no fault {unknown[0]!r}; there are {', '.join(sorted(known))}"
            )
        for name, value in raw.items():
            if value is not None and not _fits(name, value):
                raise RequestError(f"faults: {name} cannot be {value!r}")
        return cls(**{name: value for name, value in raw.items() if value is not None})

    def as_json(self) -> bytes:
        """Return what `from_json` reads."""
        return json.dumps(asdict(self)).encode()

    def at_token(self, emitted: int) -> TokenFault | None:
        """Name the fault that is due after *emitted* tokens of an answer."""
        if emitted == self.stall_after_tokens:
            return "stall"
        if emitted == self.malformed_after_tokens:
            return "malformed"
        if emitted == self.error_after_tokens:
            return "error"
        if emitted == self.disconnect_after_tokens:
            return "disconnect"
        return None


def _fits(name: str, value: object) -> bool:
    if name.endswith("_marker"):
        return isinstance(value, str) and value != ""
    if name.endswith("_tokens"):
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if name.endswith("_ratio"):
        return isinstance(value, int | float) and 0 <= value <= 1
    return isinstance(value, bool)


NO_FAULTS = Faults()

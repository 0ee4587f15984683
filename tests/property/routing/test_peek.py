"""The scanner of large bodies agrees with json.loads on everything that json.loads accepts."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from hpcserve.gateway.peek import WANTED, scan

_KEYS = st.sampled_from([*sorted(WANTED), "messages", "prompt", "", 'model"', "\\model"])
_TEXT = st.text() | st.sampled_from(['"', "\\", '\\"', '","model":"x', "{", "]", "\\\\\\"])
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT | _KEYS, inner, max_size=4),
    max_leaves=12,
)


def _render(pairs: list[tuple[str, object]], *, spaced: bool, ascii_only: bool) -> bytes:
    separators = (" ,\n", "\t: ") if spaced else (",", ":")
    items = (
        json.dumps(key, ensure_ascii=ascii_only)
        + separators[1]
        + json.dumps(value, ensure_ascii=ascii_only, separators=separators)
        for key, value in pairs
    )
    # surrogates cannot be written in UTF-8, and json.loads would not take them as bytes
    return ("{" + separators[0].join(items) + "}").encode(errors="replace")


@given(
    st.lists(st.tuples(_KEYS | st.text(), _JSON), max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_scan_is_json_loads_for_the_wanted_fields(pairs, spaced, ascii_only):
    body = _render(pairs, spaced=spaced, ascii_only=ascii_only)
    parsed = json.loads(body)
    assert scan(body) == {key: value for key, value in parsed.items() if key in WANTED}


@given(
    st.lists(st.tuples(_KEYS, _JSON), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=3),
)
def test_damaged_bodies_never_mislead(pairs, damages):
    body = bytearray(_render(pairs, spaced=False, ascii_only=True))
    for at, data in damages:
        position = at % len(body)
        body[position : position + len(data)] = data
    try:
        parsed = json.loads(bytes(body).decode())
    except ValueError:
        parsed = None
    try:
        scanned = scan(bytes(body))
    except ValueError:
        scanned = None
    if isinstance(parsed, dict):
        assert scanned == {key: value for key, value in parsed.items() if key in WANTED}

from __future__ import annotations

import importlib.util
import json
import os
from types import ModuleType
from typing import Any

import pytest

from hpcserve.engines.vllm.launch import KEY_VARIABLE, PLUGINS


def load_guard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("guard_under_test", PLUGINS / "hpcserve_guard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    return load_guard()


async def answer(guard: ModuleType, kind: str, *headers: tuple[bytes, bytes]) -> list[Any]:
    """Return what a client gets; the application behind the guard says `inside`."""
    sent: list[Any] = []

    async def inside(_scope: object, _receive: object, send: Any) -> None:
        await send("inside")

    async def receive() -> dict[str, str]:
        return {"type": f"{kind}.connect"}

    async def send(message: object) -> None:
        sent.append(message)

    await guard.Guard(inside)({"type": kind, "headers": headers}, receive, send)
    return sent


GOOD = (b"authorization", b"Bearer secret")


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_the_key_opens(guard: ModuleType, kind: str) -> None:
    assert await answer(guard, kind, (b"host", b"x"), GOOD) == ["inside"]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ((b"authorization", b"Bearer wrong"),),
        ((b"authorization", b"secret"),),
        ((b"authorization", b""),),
        ((b"authorization", b"Bearer secret\xff"),),
        (GOOD, GOOD),
        (GOOD, (b"authorization", b"Bearer wrong")),
    ],
)
async def test_anything_else_gets_401_in_openais_envelope(
    guard: ModuleType, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    start, body = await answer(guard, "http", *headers)
    assert start["status"] == 401
    assert json.loads(body["body"])["error"]["code"] == "invalid_api_key"


async def test_a_websocket_is_closed_before_it_opens(guard: ModuleType) -> None:
    assert await answer(guard, "websocket") == [{"type": "websocket.close", "code": 1008}]


async def test_start_up_needs_no_key(guard: ModuleType) -> None:
    assert await answer(guard, "lifespan") == ["inside"]


def test_the_key_leaves_the_environment(guard: ModuleType) -> None:
    assert guard.KEY_VARIABLE not in os.environ


def test_without_a_key_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with pytest.raises(RuntimeError, match="open to all"):
        load_guard()

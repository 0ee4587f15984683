"""The control contract over HTTP, and what only HTTP can get wrong."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from hpcserve.domain.credentials import control_key, engine_key
from hpcserve.domain.instance import InstanceState
from hpcserve.errors import BackendError
from hpcserve.ports.control import Control, Order
from tests.contract.control.site import (
    MAX_BODY_BYTES,
    SECRET,
    Site,
    client,
    free_port,
    gateway,
)
from tests.contract.control.suite import REGISTRATION, ControlContract, a_beat


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
async def url(site: Site, tmp_path: Path) -> AsyncIterator[str]:
    async with gateway(site, tmp_path, free_port()) as url:
        yield url


@pytest.fixture
async def control(url: str, tmp_path: Path) -> AsyncIterator[Control]:
    async with client(tmp_path) as control:
        yield control


class TestHttp(ControlContract):
    """The suite."""


def _headers(**fields: str) -> dict[str, str]:
    base = {
        "authorization": f"Bearer {control_key(SECRET, 'inst-1')}",
        "hpcserve-instance": "inst-1",
        "hpcserve-job": "inst-1-job",
    }
    return {**base, **fields}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        _headers(authorization=""),
        _headers(authorization="Bearer wrong"),
        _headers(authorization=f"Bearer {control_key(SECRET, 'inst-2')}"),
        _headers(authorization=f"Bearer {engine_key(SECRET, 'inst-1')}"),
        _headers(**{"hpcserve-instance": "inst-2"}),
    ],
)
async def test_only_the_instances_own_key_opens(
    site: Site, url: str, headers: dict[str, str]
) -> None:
    await site.add_instance(InstanceState.READY)
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as stranger:
        for call in ("register", "beat", "draining", "ended", "lease", "settle", "release"):
            response = await stranger.post(f"/control/v1/{call}", content=b"{}")
            assert (call, response.status_code) == (call, 401)
            assert response.json()["error"]["code"] == "invalid_control_key"
    assert len(await site.story()) == 1


@pytest.mark.parametrize(
    ("call", "body", "status"),
    [
        ("register", b"{", 400),
        ("register", b'{"job_id": "1"}', 400),
        ("beat", b"[]", 400),
        ("ended", b'{"reason": "bored", "message": ""}', 400),
        ("lease", b'{"limit": 0, "holding": []}', 400),
        ("lease", b'{"limit": 1, "holding": [], "more": 1}', 400),
        ("settle", b'{"lease_id": 1}\n{"line_no": 1}', 400),
        ("settle", b'{"lease_id": 1}\nno json\n{}', 400),
        ("settle", b'{"lease_id": 1}\n{"line_no": 1, "event": "dreamt"}\n{}', 400),
        ("release", b'{"lease_id": "x", "lines": null}', 400),
        ("settle", b"x" * (MAX_BODY_BYTES + 1), 413),
    ],
)
async def test_a_broken_word_is_refused_and_changes_nothing(
    site: Site, url: str, call: str, body: bytes, status: int
) -> None:
    await site.add_instance(InstanceState.READY)
    async with httpx.AsyncClient(base_url=url, headers=_headers(), trust_env=False) as agent:
        response = await agent.post(f"/control/v1/{call}", content=body)
    assert response.status_code == status
    assert response.json()["error"]["message"]
    assert len(await site.story()) == 1


async def test_the_client_finds_the_gateway_that_lives(site: Site, tmp_path: Path) -> None:
    await site.add_instance()
    async with client(tmp_path) as control:
        with pytest.raises(BackendError, match="No gateway has written down"):
            await control.register(REGISTRATION)
        async with gateway(site, tmp_path, free_port()):
            assert await control.register(REGISTRATION) is Order.CONTINUE
        with pytest.raises(BackendError, match="cannot be reached"):
            await control.beat(a_beat())
        # the dead one's file is still there
        async with gateway(site, tmp_path, free_port()):
            began = time.monotonic()
            assert await control.beat(a_beat()) is Order.CONTINUE
            assert time.monotonic() - began < 2
    assert (await site.instance()).state is InstanceState.READY


async def test_a_refused_key_is_no_reason_to_end(site: Site, url: str, tmp_path: Path) -> None:
    await site.add_instance()
    async with client(tmp_path, key="wrong") as control:
        with pytest.raises(BackendError, match=f"{url}.* answers 401"):
            await control.register(REGISTRATION)

"""One site for each kind of ledger that lives in a process or a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hpcserve.config.tree import Batching
from hpcserve.ledger import open_ledger
from hpcserve.ledger.upgrade import upgrade
from tests.contract.openai_batches.site import ScriptedAgent, Site, running

SETTINGS = Batching(poll_s=0.02, validate_chunk=3, result_page=4, retry_pause_s=0.05, sweep_s=0.2)


@pytest.fixture(params=["memory", "sqlite"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    url = "memory:"
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        await asyncio.to_thread(upgrade, url)
    async with running(open_ledger(url), tmp_path / "batches", SETTINGS) as site:
        yield site


@pytest.fixture
async def agent(site: Site) -> ScriptedAgent:
    """An agent that is introduced, and ends with the test; a test runs it."""
    agent = ScriptedAgent(site)
    await agent.introduce()
    return agent

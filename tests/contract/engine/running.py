"""Start an engine through its adapter, as an agent does, and talk to it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from hpcserve.agent.batch_slots import BatchSlots
from hpcserve.domain.load import EngineLoad
from hpcserve.domain.model import Model
from hpcserve.engines.failure import describe_exit, explain_failure
from hpcserve.engines.port import HeldPort
from hpcserve.engines.process import EngineProcess, EngineProcesses
from hpcserve.ports.engine import Engine, Launch

KEY = "key-of-this-instance"


@dataclass(frozen=True, kw_only=True)
class RunningEngine:
    """One engine that is ready."""

    adapter: Engine
    model: Model
    process: EngineProcess
    client: httpx.AsyncClient
    launch: Launch

    async def post(self, path: str, **body: object) -> httpx.Response:
        """Post a body that names the model unless it names another."""
        return await self.client.post(path, json={"model": self.model.name, **body})

    async def post_batch(self, path: str, **body: object) -> httpx.Response:
        """Post as an agent posts a line of a batch."""
        return await self.client.post(
            path,
            json={"model": self.model.name, **body},
            headers=dict(self.launch.batch_headers),
            timeout=300,
        )

    def limit_batch(self, slots: int) -> None:
        """Let batch hold so many slots."""
        assert self.launch.slots_file is not None, self.launch.note
        BatchSlots(Path(self.launch.slots_file)).limit(slots)

    async def complete(self, path: str, **body: object) -> dict[str, Any]:
        """Post and return the answer, which must be good."""
        response = await self.post(path, **body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def stream(self, path: str, **body: object) -> list[str]:
        """Post with stream and return what stands after `data:` of each event."""
        return [event async for event in self.events(path, **body)]

    async def events(self, path: str, **body: object) -> AsyncIterator[str]:
        """Post with stream and give the events as they come."""
        whole = {"model": self.model.name, "stream": True, **body}
        async with self.client.stream("POST", path, json=whole) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    yield line.removeprefix("data:").strip()

    async def load(self) -> EngineLoad:
        """Scrape and parse, on a connection of its own: streams must not delay it."""
        async with httpx.AsyncClient(
            base_url=self.client.base_url, headers=self.client.headers, trust_env=False
        ) as client:
            response = await client.get("/metrics")
        return self.adapter.read_load(response.text, datetime.now(UTC))

    async def load_when(self, running: int, *, within_s: float = 20.0) -> EngineLoad:
        """Wait until so many requests run."""
        seen: list[int] = []
        try:
            async with asyncio.timeout(within_s):
                while True:
                    load = await self.load()
                    seen.append(load.running)
                    if load.running == running:
                        return load
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise AssertionError(f"{running} never ran in {within_s} s, but {seen}") from error


@asynccontextmanager
async def running_engine(
    adapter: Engine, model: Model, folder: Path, *, within_s: float = 20.0
) -> AsyncIterator[RunningEngine]:
    """Start, wait until one token can be generated, and end."""
    log_path = str(folder / "engine.log")
    with HeldPort("127.0.0.1") as port:
        launch = adapter.launch(
            model, host="127.0.0.1", port=port.number, key=KEY, scratch_dir=str(folder)
        )
        process = await EngineProcesses(os.environ).start(launch, log_path=log_path)
        client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port.number}",
            headers={"authorization": f"Bearer {KEY}"},
            timeout=30,
            trust_env=False,
        )
        engine = RunningEngine(
            adapter=adapter, model=model, process=process, client=client, launch=launch
        )
        try:
            async with asyncio.timeout(within_s):
                await _ready(engine, log_path)
            yield engine
        finally:
            await client.aclose()
            process.kill()
            await process.wait()


async def _ready(engine: RunningEngine, log_path: str) -> None:
    while True:
        if (code := engine.process.exit_code) is not None:
            raise AssertionError(f"{describe_exit(code)}: {explain_failure(_read(log_path))}")
        try:
            response = await engine.post("/v1/completions", prompt="ready?", max_tokens=1)
        except httpx.TransportError:
            response = None
        if response is not None and response.status_code == 200:
            return
        await asyncio.sleep(0.1)


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def deltas(events: list[str]) -> list[dict[str, Any]]:
    """Return the first choice of each event that has one."""
    assert events[-1] == "[DONE]"
    bodies = [json.loads(event) for event in events[:-1]]
    return [body["choices"][0] for body in bodies if body["choices"]]

"""Watches one engine process: starts it, proves that it generates, reads it, ends it.

READY means `/health` answers 200 AND one token was generated since the start; `/health` alone is
also 200 while vLLM drains. A dead process is noticed by its exit, not by a missed health check.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from hpcserve.agent.engine_calls import EngineCalls
from hpcserve.config.tree import Agent as AgentSettings
from hpcserve.domain.job import EndReason
from hpcserve.domain.load import EngineLoad
from hpcserve.domain.model import Model
from hpcserve.errors import BackendError
from hpcserve.ports.clock import Clock
from hpcserve.ports.control import Ending
from hpcserve.ports.engine import Engine, Launch
from hpcserve.ports.process import Process, Processes

log = logging.getLogger(__name__)

#: of the log's end, searched for its last lines
_TAIL_BYTES = 64 * 1024


class Supervisor:
    """The engine of this agent."""

    def __init__(
        self,
        *,
        model: Model,
        launch: Launch,
        log_path: Path,
        engine: Engine,
        explain: Callable[[str], str],
        processes: Processes,
        calls: EngineCalls,
        clock: Clock,
        settings: AgentSettings,
        health: asyncio.Event,
        news: asyncio.Event,
        observed: Callable[[EngineLoad], None],
    ) -> None:
        """Take the parts.

        Args:
            model: what the engine serves.
            launch: how to start it.
            log_path: where its output goes.
            engine: its kind, to read its metrics.
            explain: finds in the end of a log what the engine died of.
            processes: starts it.
            calls: its HTTP front.
            clock: time.
            settings: `[agent]`.
            health: set while the engine is healthy.
            news: set when that changes.
            observed: called with each reading.

        """
        self._model = model
        self._launch = launch
        self.log_path = log_path
        self._engine = engine
        self._explain = explain
        self._processes = processes
        self._calls = calls
        self._clock = clock
        self._settings = settings
        self._health = health
        self._news = news
        self._observed = observed
        self._process: Process | None = None
        self._proof_missing = ""
        self.is_proven = False
        self.load: EngineLoad | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether the engine has proved itself and answered the last check."""
        return self._health.is_set()

    @property
    def stage(self) -> str:
        """What the engine is at, for people."""
        if self.is_healthy:
            return f"ready; {self._launch.note}" if self._launch.note else "ready"
        return "does not answer" if self.is_proven else "loading"

    async def watch(self) -> Ending:
        """Start the engine and return why it is of no use any more."""
        if self._launch.note:
            log.warning("%s", self._launch.note)
        try:
            process = await self._processes.start(self._launch, log_path=str(self.log_path))
        except BackendError as error:
            return Ending(reason=EndReason.LOAD_FAILED, message=error.message)
        self._process = process
        ended = asyncio.ensure_future(process.wait())
        useless = asyncio.ensure_future(self._observe())
        try:
            await asyncio.wait({ended, useless}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return self._fault(f"ended with {_exit_words(ended.result())}")
            return self._fault(useless.result())
        finally:
            self._note_health(is_healthy=False)
            ended.cancel()
            useless.cancel()

    async def stop(self) -> None:
        """Let the engine end by itself; kill it when it takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(self._settings.stop_s):
                await self._process.wait()
        except TimeoutError:
            self.kill()

    def kill(self) -> None:
        """End the engine at once, with all its processes."""
        if self._process is not None:
            self._process.kill()

    async def _observe(self) -> str:
        """Load, then read the engine over and over; return what is wrong with it."""
        try:
            async with asyncio.timeout(self._model.load_timeout_s):
                while not await self._proves_itself():
                    await self._clock.sleep(self._settings.probe_s)
        except TimeoutError:
            return f"was not ready within {self._model.load_timeout_s:.0f} s{self._proof_missing}"
        failures = 0
        while failures < self._settings.unhealthy_max:
            is_healthy = await self._calls.is_healthy()
            failures = 0 if is_healthy else failures + 1
            self._note_health(is_healthy=is_healthy)
            await self._read()
            await self._clock.sleep(self._settings.probe_s)
        return f"failed {failures} health checks in a row"

    async def _proves_itself(self) -> bool:
        if not await self._calls.is_healthy():
            return False
        try:
            await self._calls.prove(self._model.name)
        except BackendError as error:
            self._proof_missing = f": {error.message}"
            return False
        self.is_proven = True
        return True

    async def _read(self) -> None:
        try:
            self.load = self._engine.read_load(await self._calls.metrics(), self._clock.now())
        except BackendError:
            # unknown is not idle: without a reading nothing is decided from it
            self.load = None
            return
        self._observed(self.load)

    def _note_health(self, *, is_healthy: bool) -> None:
        if is_healthy == self.is_healthy:
            return
        if is_healthy:
            self._health.set()
        else:
            self._health.clear()
        self._news.set()

    def _fault(self, what: str) -> Ending:
        when = "while serving" if self.is_proven else "while loading"
        last = _tail(self.log_path)
        lines = "\n".join(last.splitlines()[-self._settings.log_lines :])
        return Ending(
            reason=EndReason.CRASHED if self.is_proven else EndReason.LOAD_FAILED,
            message=(
                f"The engine of {self._model.name} {what} {when}: {self._explain(last)}. "
                f"Its log is {self.log_path}; last lines:\n{lines}"
            ),
        )


def _exit_words(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError as error:
        return f"(the log cannot be read: {error.strerror})"

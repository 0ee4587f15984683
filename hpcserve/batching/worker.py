"""The loop of the leading controller over all open batches: observe, decide, act.

Reading and writing whole files takes seconds, so it runs in tasks, a bounded number at a time; the
loop goes on beside them. Every transaction checks the leadership: a controller that lost it while
it read a file writes nothing any more. A task that fails is begun anew after a pause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hpcserve.batching.finalise import Finaliser
from hpcserve.batching.intake import Intake
from hpcserve.batching.losses import Losses
from hpcserve.batching.steps import Open, Step, StepKind, decide
from hpcserve.batching.sweep import Sweep
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import Batch, BatchEvent, RequestState
from hpcserve.errors import BackendError, FencedError
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Leadership, Ledger, Tx

_log = logging.getLogger(__name__)

#: tells somebody (a command, a mail) that a batch has ended
Notify = Callable[[Batch], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The services that do the worker's acts."""

    intake: Intake
    finaliser: Finaliser
    losses: Losses
    sweep: Sweep


class BatchWorker:
    """Runs batches from validation to their files."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        settings: Batching,
        parts: Parts,
        leadership: Callable[[], Leadership | None],
        notify: Notify | None = None,
    ) -> None:
        """Take, besides the usual, this controller's leadership: None while another leads."""
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._parts = parts
        self._leadership = leadership
        self._notify = notify
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._paused_until_s: dict[str, float] = {}
        self._swept_s = float("-inf")

    async def run(self) -> None:
        """Tick until cancelled."""
        try:
            while True:
                try:
                    await self.tick()
                except FencedError:
                    _log.info("batch worker: another controller leads")
                except BackendError as error:
                    _log.warning("batch worker: %s", error)
                await self._clock.sleep(self._settings.poll_s)
        finally:
            await self.stop()

    async def tick(self) -> None:
        """Look at everything once; whole files are left to tasks."""
        if self._leadership() is None:
            return
        await self._parts.losses.recover(self._guard)
        view = await self._observe()
        for step in decide(view, self._clock.now()):
            await self._act(step)
        now_s = self._clock.monotonic_s()
        if now_s - self._swept_s >= self._settings.sweep_s:
            self._swept_s = now_s
            await self._parts.sweep.sweep()

    async def stop(self) -> None:
        """Cancel the tasks; what they leave is begun anew by the next leader."""
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settled(self) -> None:
        """Wait for the tasks that run now (for tests and orderly ends)."""
        await asyncio.gather(*self._tasks.values())

    def _guard(self, tx: Tx) -> None:
        leadership = self._leadership()
        if leadership is None:
            raise FencedError("this controller does not lead any more")
        tx.leader.check(leadership, self._clock.now())

    async def _observe(self) -> Open:
        now_s = self._clock.monotonic_s()
        self._paused_until_s = {i: t for i, t in self._paused_until_s.items() if t > now_s}
        batches = await self._ledger.transact(lambda tx: tx.batches.open())
        return Open(batches=batches, busy=frozenset({*self._tasks, *self._paused_until_s}))

    async def _act(self, step: Step) -> None:
        match step.kind:
            case StepKind.CLOSE_WINDOW | StepKind.SETTLE:
                await self._ledger.transact(lambda tx: self._close(tx, step))
            case StepKind.VALIDATE:
                self._begin(step, self._parts.intake.validate)
            case StepKind.ABANDON:
                self._begin(step, self._parts.intake.abandon)
            case StepKind.FINALISE:
                self._begin(step, self._parts.finaliser.finalise)

    def _close(self, tx: Tx, step: Step) -> None:
        """Move a batch to FINALIZING; when its window is over, its open lines expire with it."""
        self._guard(tx)
        batch = tx.batches.get(step.batch_id)
        now = self._clock.now()
        if batch is None or step not in decide(Open(batches=(batch,), busy=frozenset()), now):
            return
        event = BatchEvent.SETTLED
        if step.kind is StepKind.CLOSE_WINDOW:
            event = BatchEvent.WINDOW_CLOSED
            if batch.model:
                tx.requests.close(batch.seq, RequestState.EXPIRED)
            else:
                tx.requests.discard(batch.seq)
        tx.batches.save(*batch.on(event, at=now, reason=step.reason))

    def _begin(
        self, step: Step, work: Callable[[str, Callable[[Tx], None]], Awaitable[None]]
    ) -> None:
        if len(self._tasks) >= self._settings.tasks_max:
            return

        async def task() -> None:
            try:
                await work(step.batch_id, self._guard)
            except FencedError:
                _log.info("%s of %s stopped: another controller leads", step.kind, step.batch_id)
            except Exception:  # noqa: BLE001  # one batch must not stop the others; logged whole
                _log.exception("%s of %s failed; it is tried again", step.kind, step.batch_id)
                pause_s = self._settings.retry_pause_s
                self._paused_until_s[step.batch_id] = self._clock.monotonic_s() + pause_s
            else:
                await self._tell(step.batch_id)
            finally:
                del self._tasks[step.batch_id]

        self._tasks[step.batch_id] = asyncio.create_task(
            task(), name=f"{step.kind} {step.batch_id}"
        )

    async def _tell(self, batch_id: str) -> None:
        batch = await self._ledger.transact(lambda tx: tx.batches.get(batch_id))
        if self._notify is None or batch is None or not batch.is_terminal:
            return
        try:
            await self._notify(batch)
        except Exception:  # noqa: BLE001  # foreign code; logged whole
            _log.exception("the notification of %s failed; the batch is not touched", batch_id)

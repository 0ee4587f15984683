"""The loop: observe, decide, act; at most one squeue a tick, at most one tick each `tick_min_s`.

Nothing reacts in place to an outside event: `wake` only makes the next tick come sooner. Several
controllers may run; one leads, the others wait for its leadership to run out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import final

from hpcserve.config import Config
from hpcserve.controller.act import Actor
from hpcserve.controller.observe import Observer
from hpcserve.domain.fleet import Fleet
from hpcserve.errors import BackendError, FencedError
from hpcserve.policy.backoff import verdicts
from hpcserve.policy.decide import decide
from hpcserve.policy.scaling.target import Scaler
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Leadership, Ledger
from hpcserve.ports.notes import CONTROLLER

log = logging.getLogger(__name__)


@final
class Controller:
    """One controller process's loop."""

    def __init__(
        self,
        *,
        holder: str,
        ledger: Ledger,
        observer: Observer,
        actor: Actor,
        scaler: Scaler,
        clock: Clock,
        config: Config,
        cluster_description: str,
    ) -> None:
        """Take the parts; *holder* names this process in the leadership."""
        self._holder = holder
        self._ledger = ledger
        self._observer = observer
        self._actor = actor
        self._scaler = scaler
        self._clock = clock
        self._config = config
        self._cluster_description = cluster_description
        self._woken = asyncio.Event()
        self._leader: Leadership | None = None

    @property
    def leadership(self) -> Leadership | None:
        """The leadership of the last tick; None while another controller leads."""
        return self._leader

    def wake(self) -> None:
        """Let the next tick come soon."""
        self._woken.set()

    async def run(self) -> None:
        """Tick until cancelled; give leadership up on the way out."""
        settings = self._config.controller
        try:
            while True:
                try:
                    await self.tick()
                except BackendError as error:
                    log.warning("this tick failed: %s", error.message)
                except FencedError as error:
                    log.warning("leadership is lost: %s", error.message)
                    self._leader = None
                await self._clock.sleep(settings.tick_min_s)
                await self._rest(settings.tick_s - settings.tick_min_s)
        finally:
            if self._leader is not None:
                await self._ledger.transact(lambda tx: tx.leader.resign(self._holder))

    async def tick(self) -> None:
        """Observe, decide and act once, if this controller leads."""
        ttl_s = self._config.controller.leader_ttl_s
        self._leader = await self._ledger.transact(
            lambda tx: tx.leader.acquire(self._holder, self._clock.now(), ttl_s)
        )
        if self._leader is None:
            return
        fleet = await self._observer.observe()
        plan = decide(fleet, self._scaler, self._config, self._clock.now())
        await self._actor.act(plan, fleet.models, self._leader)
        await self._report(fleet)

    async def _rest(self, seconds: float) -> None:
        """Wait for the tick's time or a wake-up, whichever comes first."""
        rest = asyncio.ensure_future(self._clock.sleep(seconds))
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait((rest, woken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            rest.cancel()
            woken.cancel()
            self._woken.clear()

    async def _report(self, fleet: Fleet) -> None:
        note = status_note(
            fleet,
            self._observer,
            self._config,
            self._clock,
            holder=self._holder,
            cluster=self._cluster_description,
        )
        await self._ledger.transact(lambda tx: tx.notes.put(CONTROLLER, note))


def status_note(
    fleet: Fleet,
    observer: Observer,
    config: Config,
    clock: Clock,
    *,
    holder: str,
    cluster: str,
) -> Mapping[str, object]:
    """Return what `hpcserve status` shows of the controller, the scheduler and the models."""
    now = clock.now()
    outage = observer.outage
    return {
        "at": now.isoformat(),
        "holder": holder,
        "cluster": cluster,
        "scheduler_down_since": outage.since.isoformat() if outage else None,
        "scheduler_message": outage.message if outage else "",
        "models": {
            name: {"given_up": verdict.given_up, "reason": verdict.reason}
            for name, verdict in verdicts(fleet, config.controller, now).items()
        },
    }

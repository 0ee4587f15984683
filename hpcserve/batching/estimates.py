"""Watches the batches in progress, says when they will be done, and keeps score of having said so.

The leading controller looks every `estimate_s`, learns what lines cost (policy `estimate`), and
leaves its estimates in the ledger (`notes.ESTIMATES`), where every gateway finds them. A batch's
story has its first estimate and the first one from its own results; at its end each is compared
with what came true, and the share of ends before the p90 is kept (`notes.COVERAGE`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from hpcserve.batching.estimate_records import (
    DECISIONS_MAX,
    ESTIMATED,
    FIRST,
    LEARNED,
    SCALED,
    Watched,
    about,
    checked,
    counted,
    estimated,
    finished,
    priors_of,
    reason_of,
    shape,
)
from hpcserve.config.tree import Batching, Scaling
from hpcserve.domain.batch import Batch, BatchState
from hpcserve.domain.instance import Instance, InstanceState
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.errors import BackendError, FencedError
from hpcserve.policy.estimate.arrival import capacity
from hpcserve.policy.estimate.cost import HALF_DONE, Cost, Prior, cost
from hpcserve.policy.estimate.finish import Work, finish
from hpcserve.policy.estimate.history import Stretch
from hpcserve.policy.scaling.target import Target
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Leadership, Ledger, Tx
from hpcserve.ports.notes import COSTS, COVERAGE, ESTIMATES

_log = logging.getLogger(__name__)

#: results beyond those in flight that make an estimate one's own, and a batch worth learning from
_LEARNED_LINES = 64


@dataclass(frozen=True, slots=True)
class _Seen:
    """The ledger at one look."""

    batches: tuple[Batch, ...]
    live: tuple[Instance, ...]
    ended: tuple[Instance, ...]


class Estimates:
    """The estimator of the leading controller."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        settings: Batching,
        scaling: Scaling,
        ended_max: int,
        leadership: Callable[[], Leadership | None],
        targets: Callable[[], Sequence[Target]],
    ) -> None:
        """Take, besides the usual, how many ended instances tell what starts take.

        *targets* are what the scaling policy wants now, with its reasons.
        """
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._scaling = scaling
        self._ended_max = ended_max
        self._leadership = leadership
        self._targets = targets
        self._watched: dict[str, Watched] = {}
        self._priors: dict[str, Prior] | None = None
        #: whether the note has estimates in it
        self._is_shown = True

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.tick()
            except FencedError:
                _log.info("estimates: another controller leads")
            except BackendError as error:
                _log.warning("estimates: %s", error)
            except Exception:  # noqa: BLE001  # a forecast must never end the controller; logged whole
                _log.exception("estimates failed; they are tried again")
            await self._clock.sleep(self._settings.estimate_s)

    async def tick(self) -> None:
        """Look once."""
        if self._leadership() is None:
            self._watched.clear()
            self._priors = None
            return
        if self._priors is None:
            self._priors = priors_of(await self._ledger.transact(lambda tx: tx.notes.get(COSTS)))
        seen = await self._ledger.transact(self._look)
        now = self._clock.now()
        gone = sorted(self._watched.keys() - {batch.id for batch in seen.batches})
        ended = [self._watched.pop(batch_id) for batch_id in gone]
        await self._observe(seen, now)
        await self._say(seen, now)
        for watched in ended:
            await self._check(watched, now)

    def _look(self, tx: Tx) -> _Seen:
        batches = tx.batches.open()
        if not batches:
            return _Seen((), (), ())
        return _Seen(batches, tx.instances.live(), tx.instances.ended(self._ended_max))

    async def _observe(self, seen: _Seen, now: datetime) -> None:
        """Take in what has been finished since the last look."""
        leased: dict[str, int] = {}
        for batch in seen.batches:
            leased[batch.model] = leased.get(batch.model, 0) + batch.counts.leased
        for batch in seen.batches:
            if not batch.model:
                continue
            watched = self._watched.get(batch.id)
            if watched is None:
                self._watched[batch.id] = await self._begin(batch, now)
                continue
            serving = sum(
                i.model == batch.model and i.state is InstanceState.READY for i in seen.live
            )
            share = batch.counts.leased / leased[batch.model] if leased[batch.model] else 0.0
            new = Stretch(
                lines=finished(batch) - finished(watched.batch),
                output_tokens=batch.usage.output_tokens - watched.batch.usage.output_tokens,
                instance_s=(now - watched.at).total_seconds() * serving * share,
            )
            watched.history = watched.history.add(new)
            watched.pace.add(now, lines=finished(batch), tokens=batch.usage.output_tokens)
            watched.batch, watched.at = batch, now

    async def _begin(self, batch: Batch, now: datetime) -> Watched:
        story = await self._ledger.transact(lambda tx: tx.events.story(Subject.BATCH, batch.id))
        watched = Watched(batch, now)
        watched.pace.add(now, lines=finished(batch), tokens=batch.usage.output_tokens)
        for line in story:
            if line.event == ESTIMATED:
                said = datetime.fromisoformat(str(line.detail["p90_at"]))
                watched.said[str(line.detail["stage"])] = said
        return watched

    async def _say(self, seen: _Seen, now: datetime) -> None:
        """Estimate every batch in progress, and leave that where gateways find it."""
        note: dict[str, object] = {}
        events = self._decisions(now)
        running = [w for w in self._watched.values() if w.batch.state is BatchState.IN_PROGRESS]
        running.sort(key=lambda w: (w.batch.deadline_at, w.batch.created_at, w.batch.id))
        ahead: dict[str, list[Work]] = {}
        for watched in running[: self._settings.estimates_max]:
            batch = watched.batch
            works = ahead.setdefault(batch.model, [])
            before = round(sum(work.lines for work in works))
            each = self._cost(watched)
            left = batch.counts.open - batch.counts.leased * HALF_DONE
            works.append(Work(lines=left, cost=each))
            room = capacity(
                seen.live,
                seen.ended,
                batch.model,
                now=now,
                first_s=self._scaling.ready_first_s,
            )
            done = finish(works, room)
            if done is None:
                continue
            own_s = left * each.p50_s
            reason = reason_of(batch, watched.history, each, room, before=before)
            shown = shape(watched, done, seen.live, own_s=own_s, now=now, reason=reason)
            note[batch.id] = shown | {"scaling": watched.wanted_because}
            known = watched.history.total.lines - batch.counts.leased
            stage = LEARNED if known >= _LEARNED_LINES else FIRST
            if stage == LEARNED and watched.promise_s is None:
                watched.promise_s, watched.beginning = each.p50_s, watched.history.total
            if stage not in watched.said:
                watched.said[stage] = now + timedelta(seconds=done.p90_s)
                events.append(estimated(batch, done, stage, reason, now))

        if not (note or events or self._is_shown):
            return
        self._is_shown = bool(note)

        def work(tx: Tx) -> None:
            self._guard(tx)
            tx.notes.put(ESTIMATES, {"at": now.isoformat(), "batches": note})
            for event in events:
                tx.events.append(event)

        await self._ledger.transact(work)

    def _decisions(self, now: datetime) -> list[Transition]:
        """Return what the scaling policy has changed its mind about, for the stories of batches."""
        by_model: dict[str, list[Target]] = {}
        for target in self._targets():
            by_model.setdefault(target.model, []).append(target)
        events: list[Transition] = []
        for watched in self._watched.values():
            mine = by_model.get(watched.batch.model, [])
            wanted = tuple((target.role, target.count) for target in mine)
            watched.wanted_because = "; ".join(f"{t.count} {t.role}: {t.reason}" for t in mine)
            if not wanted or wanted == watched.wanted or watched.decisions == DECISIONS_MAX:
                continue
            watched.wanted = wanted
            watched.decisions += 1
            reason = f"instances wanted: {watched.wanted_because}"
            events.append(about(watched.batch.id, SCALED, reason, now))
        return events

    def _cost(self, watched: Watched) -> Cost:
        return cost(
            watched.history,
            in_flight=watched.batch.counts.leased,
            prior=self._prior(watched.batch.model),
        )

    def _prior(self, model: str) -> Prior:
        assert self._priors is not None, "the priors are read before the first look"
        return self._priors.get(model) or Prior.first(1 / self._scaling.batch_rate_first)

    async def _check(self, watched: Watched, now: datetime) -> None:
        """Compare what was said with the end, and let the next batch of this model know."""
        batch_id, model = watched.batch.id, watched.batch.model
        ended = await self._ledger.transact(lambda tx: tx.batches.get(batch_id))
        if ended is None or ended.state is not BatchState.COMPLETED:
            return
        assert self._priors is not None, "the priors are read before the first look"
        total = watched.history.total
        if total.lines >= _LEARNED_LINES and total.instance_s > 0:
            self._priors[model] = watched.learn(self._prior(model))
        priors = {name: asdict(prior) for name, prior in self._priors.items()}
        # the last result, not the writing of the files, is what was estimated
        end = ended.finalizing_at or now

        def work(tx: Tx) -> None:
            self._guard(tx)
            tx.notes.put(COSTS, priors)
            if watched.said:
                tx.notes.put(COVERAGE, counted(tx.notes.get(COVERAGE), watched.said, end))
                tx.events.append(checked(batch_id, watched.said, end, now))

        await self._ledger.transact(work)

    def _guard(self, tx: Tx) -> None:
        leadership = self._leadership()
        if leadership is None:
            raise FencedError("this controller does not lead any more")
        tx.leader.check(leadership, self._clock.now())

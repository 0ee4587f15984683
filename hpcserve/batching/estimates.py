"""Watches the batches in progress, says when they will be done, and keeps score of having said so.

The leading controller looks every `estimate_s`, learns what lines cost (policy `estimate`), and
leaves its estimates in the ledger (`notes.ESTIMATES`), where every gateway finds them. A batch's
story has its first estimate and the first one from its own results; at its end each is compared
with what came true, and the share of ends before the p90 is kept (`notes.COVERAGE`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta

from hpcserve.batching.pace import Pace
from hpcserve.config.tree import Batching, Scaling
from hpcserve.domain.batch import Batch, BatchState
from hpcserve.domain.instance import Instance, InstanceState
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.errors import BackendError, FencedError
from hpcserve.policy.estimate.arrival import capacity
from hpcserve.policy.estimate.cost import Cost, Prior, cost
from hpcserve.policy.estimate.finish import Capacity, Finish, Work, finish
from hpcserve.policy.estimate.history import History, Stretch
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Leadership, Ledger, Tx
from hpcserve.ports.notes import COSTS, COVERAGE, ESTIMATES

_log = logging.getLogger(__name__)

#: the event of an estimate; `detail` has `stage`, `p50_at` and `p90_at`
ESTIMATED = "estimated"
#: the event of its comparison with the end
CHECKED = "estimate_checked"
#: estimates that the story keeps: the first one, and the first by own results
_FIRST, _LEARNED = "first", "learned"
#: results beyond those in flight that make an estimate one's own, and a batch worth learning from
_LEARNED_LINES = 64


@dataclass(slots=True)
class _Watched:
    """A batch as it was at the last look, and what has been learned of it."""

    batch: Batch
    at: datetime
    history: History = field(default_factory=History)
    pace: Pace = field(default_factory=Pace)
    #: p90 by stage, as the story has them
    said: dict[str, datetime] = field(default_factory=dict)
    #: what a line was to cost by the first own results, and what they were
    promise_s: float | None = None
    beginning: Stretch = field(default_factory=Stretch)

    def learn(self, prior: Prior) -> Prior:
        """Return what the next batch of this model is to believe."""
        total = self.history.total
        lines = total.lines - self.beginning.lines
        rest_s = (total.instance_s - self.beginning.instance_s) / lines if lines else 0.0
        return prior.learn(total.cost_s, self.promise_s, rest_s or None)


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
    ) -> None:
        """Take, besides the usual, how many ended instances tell what starts take."""
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._scaling = scaling
        self._ended_max = ended_max
        self._leadership = leadership
        self._watched: dict[str, _Watched] = {}
        self._priors: dict[str, Prior] | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.tick()
            except FencedError:
                _log.info("estimates: another controller leads")
            except BackendError as error:
                _log.warning("estimates: %s", error)
            await self._clock.sleep(self._settings.estimate_s)

    async def tick(self) -> None:
        """Look once."""
        if self._leadership() is None:
            self._watched.clear()
            self._priors = None
            return
        if self._priors is None:
            self._priors = _priors(await self._ledger.transact(lambda tx: tx.notes.get(COSTS)))
        seen = await self._ledger.transact(self._look)
        now = self._clock.now()
        await self._observe(seen, now)
        await self._say(seen, now)
        gone = self._watched.keys() - {batch.id for batch in seen.batches}
        for batch_id in sorted(gone):
            await self._check(self._watched.pop(batch_id), now)

    def _look(self, tx: Tx) -> _Seen:
        return _Seen(tx.batches.open(), tx.instances.live(), tx.instances.ended(self._ended_max))

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
                lines=_done(batch) - _done(watched.batch),
                output_tokens=batch.usage.output_tokens - watched.batch.usage.output_tokens,
                instance_s=(now - watched.at).total_seconds() * serving * share,
            )
            watched.history = watched.history.add(new)
            watched.pace.add(now, lines=_done(batch), tokens=batch.usage.output_tokens)
            watched.batch, watched.at = batch, now

    async def _begin(self, batch: Batch, now: datetime) -> _Watched:
        story = await self._ledger.transact(lambda tx: tx.events.story(Subject.BATCH, batch.id))
        watched = _Watched(batch, now)
        watched.pace.add(now, lines=_done(batch), tokens=batch.usage.output_tokens)
        for line in story:
            if line.event == ESTIMATED:
                said = datetime.fromisoformat(str(line.detail["p90_at"]))
                watched.said[str(line.detail["stage"])] = said
        return watched

    async def _say(self, seen: _Seen, now: datetime) -> None:
        """Estimate every batch in progress, and leave that where gateways find it."""
        note: dict[str, object] = {}
        events: list[Transition] = []
        running = [w for w in self._watched.values() if w.batch.state is BatchState.IN_PROGRESS]
        running.sort(key=lambda w: (w.batch.deadline_at, w.batch.created_at, w.batch.id))
        ahead: dict[str, list[Work]] = {}
        for watched in running[: self._settings.estimates_max]:
            batch = watched.batch
            works = ahead.setdefault(batch.model, [])
            before = sum(work.lines for work in works)
            each = self._cost(watched)
            works.append(Work(lines=batch.counts.open, cost=each))
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
            own_s = batch.counts.open * each.p50_s
            reason = _reason(batch, watched.history, each, room, before=before)
            note[batch.id] = _shape(watched, done, seen.live, own_s=own_s, now=now, reason=reason)
            known = watched.history.total.lines - batch.counts.leased
            stage = _LEARNED if known >= _LEARNED_LINES else _FIRST
            if stage == _LEARNED and watched.promise_s is None:
                watched.promise_s, watched.beginning = each.p50_s, watched.history.total
            if stage not in watched.said:
                watched.said[stage] = now + timedelta(seconds=done.p90_s)
                events.append(_estimated(batch, done, stage, reason, now))

        def work(tx: Tx) -> None:
            self._guard(tx)
            tx.notes.put(ESTIMATES, {"at": now.isoformat(), "batches": note})
            for event in events:
                tx.events.append(event)

        await self._ledger.transact(work)

    def _cost(self, watched: _Watched) -> Cost:
        return cost(
            watched.history,
            in_flight=watched.batch.counts.leased,
            prior=self._prior(watched.batch.model),
        )

    def _prior(self, model: str) -> Prior:
        assert self._priors is not None, "the priors are read before the first look"
        return self._priors.get(model) or Prior.first(1 / self._scaling.batch_rate_first)

    async def _check(self, watched: _Watched, now: datetime) -> None:
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
                tx.notes.put(COVERAGE, _counted(tx.notes.get(COVERAGE), watched.said, end))
                tx.events.append(_checked(batch_id, watched.said, end, now))

        await self._ledger.transact(work)

    def _guard(self, tx: Tx) -> None:
        leadership = self._leadership()
        if leadership is None:
            raise FencedError("this controller does not lead any more")
        tx.leader.check(leadership, self._clock.now())


def _done(batch: Batch) -> int:
    return batch.counts.completed + batch.counts.failed


def _shape(
    watched: _Watched,
    done: Finish,
    live: Sequence[Instance],
    *,
    own_s: float,
    now: datetime,
    reason: str,
) -> dict[str, object]:
    """Return one estimate as gateways hand it out."""
    batch, total = watched.batch, watched.history.total
    gpus = max((i.gpus for i in live if i.model == batch.model), default=0)
    p90_at = now + timedelta(seconds=done.p90_s)
    return {
        "p50_at": (now + timedelta(seconds=done.p50_s)).isoformat(),
        "p90_at": p90_at.isoformat(),
        "in_time": p90_at <= batch.deadline_at,
        "instance_hours": own_s / 3600,
        "gpus_per_instance": gpus,
        "lines_per_s": watched.pace.lines_per_s,
        "output_tokens_per_s": watched.pace.tokens_per_s,
        "output_tokens_per_line": total.output_tokens / total.lines if total.lines else None,
        "reason": reason,
    }


def _reason(batch: Batch, history: History, each: Cost, room: Capacity, *, before: int) -> str:
    total = history.total
    learned = f"{total.lines} own results" if total.lines else "earlier batches of its model"
    if room.serving:
        serving = f"{room.serving} serving"
    else:
        soon = min(room.coming, key=lambda coming: coming.p50_s)
        serving = f"the first expected to serve in {soon.p50_s:.0f} s (p90 {soon.p90_s:.0f} s)"
    queue = f" behind {before} that are due earlier" if before else ""
    return (
        f"{batch.counts.open} requests are open{queue}, each costs {each.p50_s:.3g} s of an "
        f"instance (p90 {each.p90_s:.3g} s, by {learned}), with {serving}"
    )


def _estimated(batch: Batch, done: Finish, stage: str, reason: str, now: datetime) -> Transition:
    p50_at, p90_at = (now + timedelta(seconds=s) for s in (done.p50_s, done.p90_s))
    late = "" if p90_at <= batch.deadline_at else ", which is too late"
    return Transition(
        subject=Subject.BATCH,
        subject_id=batch.id,
        at=now,
        event=ESTIMATED,
        from_state=None,
        to_state=None,
        reason=(
            f"done in {done.p50_s:.0f} s, with certainty 0.9 in {done.p90_s:.0f} s{late}: {reason}"
        ),
        detail={"stage": stage, "p50_at": p50_at.isoformat(), "p90_at": p90_at.isoformat()},
    )


def _checked(
    batch_id: str, said: Mapping[str, datetime], end: datetime, now: datetime
) -> Transition:
    off = {stage: (end - p90_at).total_seconds() for stage, p90_at in said.items()}
    words = [
        f"{abs(late_s):.0f} s {'after' if late_s > 0 else 'before'} the {stage} p90"
        for stage, late_s in off.items()
    ]
    return Transition(
        subject=Subject.BATCH,
        subject_id=batch_id,
        at=now,
        event=CHECKED,
        from_state=None,
        to_state=None,
        reason=f"its last result came {' and '.join(words)}",
        detail={"late_s": off},
    )


def _counted(
    note: Mapping[str, object] | None, said: Mapping[str, datetime], end: datetime
) -> dict[str, object]:
    """Return the score with one more batch, by stage: how many, and how many were covered."""
    score: dict[str, object] = dict(note or {})
    for stage, p90_at in said.items():
        known = score.get(stage)
        counts = known if isinstance(known, Mapping) else {"batches": 0, "covered": 0}
        score[stage] = {
            "batches": int(counts["batches"]) + 1,
            "covered": int(counts["covered"]) + (end <= p90_at),
        }
    return score


def _priors(note: Mapping[str, object] | None) -> dict[str, Prior]:
    return {
        model: Prior(**{name: float(number) for name, number in value.items()})
        for model, value in (note or {}).items()
        if isinstance(value, Mapping)
    }

"""Earliest deadline first; inside a deadline bucket the least-served owner first.

- Deadlines that fall into the same `deadline_bucket_s` count as equal: minutes of difference are no
  reason for one user to wait for another's million lines.
- Served means requests in flight now, over all models. Owners without any go first, so a small
  batch starts at once beside a big one; absolute deadlines keep everybody from starving.
- Nothing is leased that cannot finish before the allocation ends: work lost there costs GPU time
  twice. A batch of short requests is still packed where one of long requests is not.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime

from hpcserve.domain.batch import Backlog
from hpcserve.policy.packing.view import Nothing, PackingSettings, PackingView, Pick


def pack(view: PackingView, settings: PackingSettings, now: datetime) -> Pick | Nothing:
    """Choose the batch that the asking instance works on next."""
    ask = view.ask
    waiting = [b for b in view.backlog if b.model == ask.model and b.waiting > 0]
    if not waiting:
        return Nothing(reason=f"no batch request of {ask.model} waits")
    if ask.limit < 1:
        return Nothing(reason=f"{ask.instance_id} has no room")
    in_time = [b for b in waiting if b.deadline_at > now]
    if not in_time:
        return Nothing(reason=f"the windows of all waiting batches of {ask.model} are over")
    fitting = [b for b in in_time if _fits(b, view, settings, now)]
    if not fitting:
        left_s = max(0.0, (ask.ends_at - now).total_seconds()) if ask.ends_at else 0.0
        return Nothing(
            reason=f"no waiting request would finish in the {left_s:.0f} s left to the allocation"
        )
    in_flight: Counter[str] = Counter()
    for batch in view.backlog:
        in_flight[batch.owner] += batch.leased

    def urgency(batch: Backlog) -> tuple[int, int, datetime, datetime, str]:
        bucket = int(batch.deadline_at.timestamp()) // settings.deadline_bucket_s
        served = in_flight[batch.owner]
        return bucket, served, batch.deadline_at, batch.created_at, batch.batch_id

    first = min(fitting, key=urgency)
    return Pick(
        batch_id=first.batch_id,
        limit=min(ask.limit, first.waiting),
        reason=(
            f"due {first.deadline_at:%Y-%m-%d %H:%M} UTC, the earliest that fits; "
            f"{first.owner} has {in_flight[first.owner]} requests in flight"
        ),
    )


def _fits(batch: Backlog, view: PackingView, settings: PackingSettings, now: datetime) -> bool:
    if view.ask.ends_at is None:
        return True
    left_s = (view.ask.ends_at - now).total_seconds()
    return view.request_s.get(batch.batch_id, settings.request_s) <= left_s

"""All stores but that of requests, in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import islice

from typing_extensions import override

from hpcserve.domain.batch import Backlog, Batch, BatchState, InputFile
from hpcserve.domain.fleet import Demand
from hpcserve.domain.instance import Instance
from hpcserve.domain.key import ApiKey
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.domain.load import EngineLoad, GpuLoad
from hpcserve.errors import ConflictError, FencedError
from hpcserve.ledger.memory.journal import Journal
from hpcserve.ledger.memory.shelves import Shelves, Tally
from hpcserve.ports.ledger import (
    BatchStore,
    DemandStore,
    EventStore,
    FileStore,
    InstanceStore,
    KeyStore,
    Leadership,
    LeaderStore,
    NoteStore,
    SegmentStore,
)

#: a resigned leadership has expired, whatever the time
RESIGNED_AT = datetime(1970, 1, 1, tzinfo=UTC)


class MemoryEvents(EventStore):
    """Stories by subject, and when each event last happened."""

    def __init__(self, shelves: Shelves, journal: Journal) -> None:
        self._shelves = shelves
        self._journal = journal

    @override
    def append(self, transition: Transition) -> None:
        key = (transition.subject, transition.subject_id)
        if key not in self._shelves.stories:
            self._journal.put(self._shelves.stories, key, [])
        self._journal.append(self._shelves.stories[key], transition)
        last = self._shelves.last.setdefault(transition.event, {})
        if transition.at >= last.get(transition.subject_id, transition.at):
            self._journal.put(last, transition.subject_id, transition.at)

    @override
    def story(self, subject: Subject, subject_id: str) -> tuple[Transition, ...]:
        return tuple(self._shelves.stories.get((subject, subject_id), ()))

    @override
    def last(self, event: str) -> Mapping[str, datetime]:
        return dict(self._shelves.last.get(event, {}))


class MemoryInstances(InstanceStore):
    """Instances by id; the live ones apart, since every tick reads them."""

    def __init__(self, shelves: Shelves, journal: Journal, events: MemoryEvents) -> None:
        self._shelves = shelves
        self._journal = journal
        self._events = events

    @override
    def add(self, instance: Instance, transition: Transition) -> None:
        if self.get(instance.id) is not None or instance.token in self._shelves.tokens:
            raise ConflictError(f"the ledger has such a row already: instance {instance.id}")
        self._journal.put(self._shelves.tokens, instance.token, instance.id)
        self._put(instance)
        self._events.append(transition)

    @override
    def get(self, instance_id: str) -> Instance | None:
        return self._shelves.live.get(instance_id) or self._shelves.ended.get(instance_id)

    @override
    def live(self) -> tuple[Instance, ...]:
        return tuple(sorted(self._shelves.live.values(), key=lambda i: (i.requested_at, i.id)))

    @override
    def ended(self, limit: int) -> tuple[Instance, ...]:
        newest = islice(reversed(self._shelves.ended_order), limit)
        return tuple(self._shelves.ended[instance_id] for _, instance_id in newest)

    @override
    def save(self, instance: Instance, *transitions: Transition) -> None:
        stored = self.get(instance.id)
        if stored is None or stored.version != instance.version:
            raise ConflictError(
                f"instance {instance.id} is no longer at version {instance.version}; read it again"
            )
        # a heartbeat that came since the instance was read must not be lost
        is_heard_since = stored.heard_at is not None and (
            instance.heard_at is None or stored.heard_at > instance.heard_at
        )
        self._put(
            replace(
                instance,
                heard_at=_later(stored.heard_at, instance.heard_at),
                busy_at=_later(stored.busy_at, instance.busy_at),
                load=stored.load if is_heard_since else instance.load,
                gpu_load=stored.gpu_load if is_heard_since else instance.gpu_load,
                version=instance.version + 1,
            )
        )
        for transition in transitions:
            self._events.append(transition)

    @override
    def heard(
        self,
        instance_id: str,
        at: datetime,
        load: EngineLoad | None,
        *,
        busy: bool,
        gpu_load: tuple[GpuLoad, ...] = (),
    ) -> None:
        stored = self._shelves.live.get(instance_id)
        if stored is None or (stored.heard_at is not None and stored.heard_at > at):
            return
        self._put(
            replace(
                stored,
                heard_at=at,
                busy_at=_later(stored.busy_at, at if busy else None),
                load=load or stored.load,
                gpu_load=gpu_load or stored.gpu_load,
            )
        )

    def _put(self, instance: Instance) -> None:
        if instance.is_live:
            self._journal.put(self._shelves.live, instance.id, instance)
            return
        self._journal.remove(self._shelves.live, instance.id)
        before = self._shelves.ended.get(instance.id)
        order = self._shelves.ended_order
        if before is not None:
            self._journal.drop(order, _end(before))
        self._journal.insort(order, _end(instance))
        self._journal.put(self._shelves.ended, instance.id, instance)


class MemoryFiles(FileStore):
    """Files by id."""

    def __init__(self, shelves: Shelves, journal: Journal) -> None:
        self._files = shelves.files
        self._journal = journal

    @override
    def add(self, file: InputFile) -> None:
        self._journal.insert(self._files, file.id, file)

    @override
    def get(self, file_id: str) -> InputFile | None:
        return self._files.get(file_id)

    @override
    def list(self, owner: str, *, purpose: str | None) -> tuple[InputFile, ...]:
        found = (
            file
            for file in self._files.values()
            if file.owner == owner and purpose in (None, file.purpose)
        )
        return tuple(sorted(found, key=lambda f: (f.created_at, f.id), reverse=True))

    @override
    def delete(self, file_id: str) -> None:
        self._journal.remove(self._files, file_id)

    @override
    def expired(self, now: datetime, limit: int) -> tuple[InputFile, ...]:
        found = sorted(
            (file.expires_at, file.id)
            for file in self._files.values()
            if file.expires_at is not None and file.expires_at <= now
        )
        return tuple(self._files[file_id] for _, file_id in found[:limit])


class MemorySegments(SegmentStore):
    """Paths by number."""

    def __init__(self, shelves: Shelves, journal: Journal) -> None:
        self._segments = shelves.segments
        self._journal = journal

    @override
    def add(self, path: str) -> int:
        number = len(self._segments) + 1
        self._journal.put(self._segments, number, path)
        return number

    @override
    def paths(self, segments: Sequence[int]) -> Mapping[int, str]:
        return {n: self._segments[n] for n in segments if n in self._segments}


class MemoryBatches(BatchStore):
    """Batches by id, each with its tally."""

    def __init__(self, shelves: Shelves, journal: Journal, events: MemoryEvents) -> None:
        self._shelves = shelves
        self._journal = journal
        self._events = events

    @override
    def add(self, batch: Batch, transition: Transition) -> Batch:
        key = batch.idempotency_key
        if key is not None and self.by_idempotency_key(batch.owner, key) is not None:
            raise ConflictError(f"the ledger has such a row already: idempotency key {key}")
        numbered = replace(batch, seq=len(self._shelves.batches) + 1)
        self._journal.insert(self._shelves.batches, batch.id, numbered)
        self._journal.put(self._shelves.tallies, numbered.seq, Tally())
        self._journal.put(self._shelves.lines, numbered.seq, {})
        self._events.append(transition)
        return self._with_tally(numbered)

    @override
    def get(self, batch_id: str) -> Batch | None:
        stored = self._shelves.batches.get(batch_id)
        return None if stored is None else self._with_tally(stored)

    @override
    def by_idempotency_key(self, owner: str, key: str) -> Batch | None:
        for batch in self._shelves.batches.values():
            if (batch.owner, batch.idempotency_key) == (owner, key):
                return self._with_tally(batch)
        return None

    @override
    def list(self, owner: str | None, *, after: str | None, limit: int) -> tuple[Batch, ...]:
        behind = None if after is None else self._shelves.batches.get(after)
        if after is not None and behind is None:
            return ()
        found = (
            batch
            for batch in sorted(self._shelves.batches.values(), key=lambda b: b.seq, reverse=True)
            if owner in (None, batch.owner) and (behind is None or batch.seq < behind.seq)
        )
        return tuple(self._with_tally(batch) for batch in islice(found, limit))

    @override
    def open(self) -> tuple[Batch, ...]:
        found = (batch for batch in self._shelves.batches.values() if not batch.is_terminal)
        return tuple(self._with_tally(batch) for batch in sorted(found, key=lambda b: b.seq))

    @override
    def save(self, batch: Batch, *transitions: Transition) -> None:
        stored = self._shelves.batches.get(batch.id)
        if stored is None or stored.version != batch.version:
            raise ConflictError(
                f"batch {batch.id} is no longer at version {batch.version}; read it again"
            )
        saved = replace(batch, seq=stored.seq, version=batch.version + 1)
        self._journal.put(self._shelves.batches, batch.id, saved)
        for transition in transitions:
            self._events.append(transition)

    @override
    def progress(self, batch_id: str, *, lines: int, size_bytes: int) -> None:
        stored = self._shelves.batches.get(batch_id)
        if stored is not None:
            tally = self._shelves.tallies[stored.seq]
            read = replace(tally, validated_lines=lines, validated_bytes=size_bytes)
            self._journal.put(self._shelves.tallies, stored.seq, read)

    @override
    def backlog(self) -> tuple[Backlog, ...]:
        found = (
            (batch, self._shelves.tallies[batch.seq].counts)
            for batch in self._shelves.batches.values()
            if batch.state is BatchState.IN_PROGRESS
        )
        return tuple(
            Backlog(
                batch_id=batch.id,
                batch_seq=batch.seq,
                owner=batch.owner,
                model=batch.model,
                deadline_at=batch.deadline_at,
                created_at=batch.created_at,
                waiting=counts.waiting,
                leased=counts.leased,
            )
            for batch, counts in sorted(found, key=lambda item: (item[0].deadline_at, item[0].seq))
            if counts.open
        )

    def _with_tally(self, batch: Batch) -> Batch:
        tally = self._shelves.tallies[batch.seq]
        return replace(
            batch,
            counts=tally.counts,
            usage=tally.usage,
            first_result_at=tally.first_result_at,
            validated_lines=tally.validated_lines,
            validated_bytes=tally.validated_bytes,
        )


class MemoryKeys(KeyStore):
    """Keys by id."""

    def __init__(self, shelves: Shelves, journal: Journal) -> None:
        self._keys = shelves.keys
        self._journal = journal

    @override
    def add(self, key: ApiKey) -> None:
        if self.by_digest(key.digest) is not None:
            raise ConflictError(f"the ledger has such a row already: key {key.id}")
        self._journal.insert(self._keys, key.id, key)

    @override
    def by_digest(self, digest: str) -> ApiKey | None:
        return next((key for key in self._keys.values() if key.digest == digest), None)

    @override
    def list(self, owner: str | None) -> tuple[ApiKey, ...]:
        found = (key for key in self._keys.values() if owner in (None, key.owner))
        return tuple(sorted(found, key=lambda k: (k.created_at, k.id), reverse=True))

    @override
    def revoke(self, key_id: str, now: datetime) -> bool:
        key = self._keys.get(key_id)
        if key is None:
            return False
        self._journal.put(self._keys, key_id, replace(key, revoked_at=key.revoked_at or now))
        return True


class MemoryDemand(DemandStore):
    """Demand by gateway and model."""

    def __init__(self, shelves: Shelves, journal: Journal) -> None:
        self._demand = shelves.demand
        self._journal = journal

    @override
    def report(self, gateway_id: str, demand: Sequence[Demand]) -> None:
        for one in demand:
            self._journal.put(self._demand, (gateway_id, one.model), one)

    @override
    def read(self, since: datetime) -> tuple[Demand, ...]:
        total: dict[str, Demand] = {}
        for one in self._demand.values():
            is_fresh = one.asked_at >= since
            so_far = total.get(one.model, replace(one, running=0, waiting=0))
            total[one.model] = replace(
                so_far,
                asked_at=max(so_far.asked_at, one.asked_at),
                running=so_far.running + (one.running if is_fresh else 0),
                waiting=so_far.waiting + (one.waiting if is_fresh else 0),
            )
        return tuple(total[model] for model in sorted(total))


class MemoryLeader(LeaderStore):
    """The last leadership."""

    def __init__(self, shelves: Shelves, journal: Journal) -> None:
        self._shelf = shelves.leadership
        self._journal = journal

    @override
    def acquire(self, holder: str, now: datetime, ttl_s: float) -> Leadership | None:
        last = self.current()
        is_live = last is not None and last.expires_at > now
        if last is not None and is_live and last.holder != holder:
            return None
        fence = 1 if last is None else last.fence + (not is_live)
        won = Leadership(holder=holder, fence=fence, expires_at=now + timedelta(seconds=ttl_s))
        self._journal.put(self._shelf, 1, won)
        return won

    @override
    def check(self, leadership: Leadership, now: datetime) -> None:
        last = self.current()
        if (
            last is None
            or (last.holder, last.fence) != (leadership.holder, leadership.fence)
            or last.expires_at <= now
        ):
            raise FencedError(
                f"controller {leadership.holder} no longer leads (fence {leadership.fence});"
                " it must stop acting"
            )

    @override
    def resign(self, holder: str) -> None:
        last = self.current()
        if last is not None and last.holder == holder:
            self._journal.put(self._shelf, 1, replace(last, expires_at=RESIGNED_AT))

    @override
    def current(self) -> Leadership | None:
        return self._shelf.get(1)


class MemoryNotes(NoteStore):
    """Notes by name."""

    def __init__(self, shelves: Shelves, journal: Journal) -> None:
        self._notes = shelves.notes
        self._journal = journal

    @override
    def put(self, name: str, value: Mapping[str, object]) -> None:
        self._journal.put(self._notes, name, dict(value))

    @override
    def get(self, name: str) -> Mapping[str, object] | None:
        return self._notes.get(name)


def _later(stored: datetime | None, given: datetime | None) -> datetime | None:
    if stored is None or given is None:
        return stored or given
    return max(stored, given)


def _end(instance: Instance) -> tuple[datetime, str]:
    return instance.ended_at or instance.requested_at, instance.id

"""Writes what a finished batch leaves: output file, error file, manifest; then enters them.

Everything is made anew from the ledger, given its final name when it is complete on disk, and
entered in one transaction. A crash before that transaction costs the work, never a line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from hpcserve.batching.files import PURPOSE_OUTPUT
from hpcserve.batching.intake import Guard
from hpcserve.batching.leasing import INPUT_LOST
from hpcserve.batching.manifest import manifest
from hpcserve.batching.places import Places
from hpcserve.batching.result_file import CustomIds, ResultFile, error_line
from hpcserve.batching.result_rows import Row, SliceReader, pages
from hpcserve.config.tree import Batching
from hpcserve.domain.batch import Batch, BatchEvent, BatchState, InputFile, RequestState
from hpcserve.domain.instance import Instance
from hpcserve.domain.lifecycle import Subject, Transition
from hpcserve.errors import BackendError
from hpcserve.ports.clock import Clock, Ids
from hpcserve.ports.ledger import Ledger, Tx

#: the event that lines used up their attempts; `detail["lines"]` names them
EXHAUSTED = "exhausted"

_EXPIRED = (
    "batch_expired",
    "This request could not be executed before the completion window expired.",
)
_CANCELLED = ("batch_cancelled", "This request was not executed: the batch was cancelled.")
_ERRORS = (RequestState.FAILED, RequestState.EXPIRED, RequestState.CANCELLED)


class Finaliser:
    """Brings batches from FINALIZING or CANCELLING to their end."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clock: Clock,
        ids: Ids,
        settings: Batching,
        places: Places,
        version: str,
        describe: Callable[[str], Mapping[str, object]],
    ) -> None:
        """Take, besides the usual, hpcserve's version and what the catalog says of a model."""
        self._ledger = ledger
        self._clock = clock
        self._ids = ids
        self._settings = settings
        self._places = places
        self._version = version
        self._describe = describe

    async def finalise(self, batch_id: str, guard: Guard) -> None:
        """Write the files of a batch and end it; does nothing to a batch that is not due."""

        def begin(tx: Tx) -> tuple[Batch, tuple[Transition, ...], InputFile | None] | None:
            guard(tx)
            batch = tx.batches.get(batch_id)
            if batch is None or batch.state not in (BatchState.FINALIZING, BatchState.CANCELLING):
                return None
            if batch.state is BatchState.CANCELLING:
                tx.requests.close(batch.seq, RequestState.CANCELLED)
                batch = tx.batches.get(batch_id)
                assert batch is not None
            story = tx.events.story(Subject.BATCH, batch_id)
            return batch, story, tx.files.get(batch.input_file_id)

        begun = await self._ledger.transact(begin)
        if begun is None:
            return
        batch, story, source = begun
        try:
            await self._write_and_enter(batch, story, source, guard)
        except OSError as error:
            raise BackendError(
                f"the results of {batch_id} cannot be written to {self._places.outputs} "
                f"({error.strerror}); this is tried again",
                retryable=True,
            ) from error

    async def _write_and_enter(
        self,
        batch: Batch,
        story: Sequence[Transition],
        source: InputFile | None,
        guard: Guard,
    ) -> None:
        tag = self._ids.new("tmp")
        with (
            ResultFile(self._places.output(batch.id, "output.jsonl"), tag=tag) as output,
            ResultFile(self._places.output(batch.id, "errors.jsonl"), tag=tag) as errors,
            ResultFile(self._places.output(batch.id, "manifest.json"), tag=tag) as facts,
            CustomIds(self._places.custom_ids(batch.id)) as custom_ids,
            SliceReader(self._settings.read_block_bytes) as slices,
        ):
            await self._copy(batch, (RequestState.COMPLETED,), output, slices, None)
            blank = _Blank(batch, story, custom_ids, self._settings.max_attempts)
            await self._copy(batch, _ERRORS, errors, slices, blank)
            _require_all(batch, output, errors)
            instances = await self._instances(story)
            text = manifest(
                batch,
                story=story,
                source=source,
                output=output,
                errors=errors,
                instances=instances,
                version=self._version,
                model=self._describe(batch.model) if batch.model else {},
            )
            facts.write((text,), lines=1)
            kept = [await self._publish(batch, file) for file in (output, errors) if file.lines]
            await asyncio.to_thread(facts.publish)
        await self._enter(batch, {file.filename: file for file in kept}, guard)
        await asyncio.to_thread(self._places.custom_ids(batch.id).unlink, missing_ok=True)

    async def _copy(
        self,
        batch: Batch,
        states: Sequence[RequestState],
        file: ResultFile,
        slices: SliceReader,
        blank: _Blank | None,
    ) -> None:
        async for rows in pages(self._ledger, batch.seq, states, page=self._settings.result_page):
            segments = tuple({row.segment for row in rows if row.segment >= 0})
            paths = await self._ledger.transact(
                lambda tx, segments=segments: tx.segments.paths(segments)  # type: ignore[misc]  # bound early
            )
            await asyncio.to_thread(_copy_page, rows, paths, file, slices, blank)

    async def _instances(self, story: Sequence[Transition]) -> tuple[Instance, ...]:
        ids = dict.fromkeys(str(t.detail["instance"]) for t in story if "instance" in t.detail)

        def work(tx: Tx) -> tuple[Instance, ...]:
            found = (tx.instances.get(instance_id) for instance_id in ids)
            return tuple(instance for instance in found if instance is not None)

        return await self._ledger.transact(work)

    async def _publish(self, batch: Batch, file: ResultFile) -> InputFile:
        found = await asyncio.to_thread(file.publish)
        now = self._clock.now()
        return InputFile(
            id=self._ids.new("file"),
            owner=batch.owner,
            filename=file.final.name,
            purpose=PURPOSE_OUTPUT,
            size_bytes=found.st_size,
            created_at=now,
            expires_at=now + timedelta(seconds=self._settings.keep_files_s),
            path=str(file.final),
            is_ours=True,
            mtime_ns=found.st_mtime_ns,
        )

    async def _enter(self, batch: Batch, files: Mapping[str, InputFile], guard: Guard) -> None:
        output = files.get(self._places.output(batch.id, "output.jsonl").name)
        errors = files.get(self._places.output(batch.id, "errors.jsonl").name)

        def work(tx: Tx) -> None:
            guard(tx)
            current = tx.batches.get(batch.id)
            if current is None or current.is_terminal:
                return
            for file in files.values():
                tx.files.add(file)
            counts = current.counts
            is_late = current.state is BatchState.FINALIZING and (
                counts.expired > 0 or counts.total == 0
            )
            unfinished = counts.expired + counts.cancelled
            reason = f"{counts.completed} completed, {counts.failed} failed" + (
                f", {unfinished} not done" if unfinished else ""
            )
            tx.batches.save(
                *current.on(
                    BatchEvent.WRITTEN_LATE if is_late else BatchEvent.WRITTEN,
                    at=self._clock.now(),
                    reason=reason,
                    output_file_id=output.id if output else None,
                    error_file_id=errors.id if errors else None,
                )
            )

        await self._ledger.transact(work)


class _Blank:
    """Error lines of requests that no agent answered."""

    def __init__(
        self,
        batch: Batch,
        story: Sequence[Transition],
        custom_ids: CustomIds,
        max_attempts: int,
    ) -> None:
        self._batch_id = batch.id
        self._custom_ids = custom_ids
        self._exhausted: set[int] = set()
        self._exhausted_error = (
            "attempts_exhausted",
            (
                f"The instance was lost {max_attempts} times while it ran this request; "
                "does the request crash the engine?"
            ),
        )
        self._lost_error = ("input_file_changed", "The input file was changed or has vanished.")
        for transition in story:
            if transition.event == EXHAUSTED:
                self._exhausted.update(_numbers(transition.detail.get("lines")))
            elif transition.event == INPUT_LOST:
                self._lost_error = (str(transition.detail["code"]), transition.reason)

    def line(self, row: Row) -> bytes:
        """Return the error line of one row."""
        if row.state is RequestState.EXPIRED:
            code, message = _EXPIRED
        elif row.state is RequestState.CANCELLED:
            code, message = _CANCELLED
        elif row.line_no in self._exhausted:
            code, message = self._exhausted_error
        else:
            code, message = self._lost_error
        custom_id = self._custom_ids.at(row.line_no)
        return error_line(self._batch_id, row.line_no, custom_id, code, message)


def _copy_page(
    rows: Sequence[Row],
    paths: Mapping[int, str],
    file: ResultFile,
    slices: SliceReader,
    blank: _Blank | None,
) -> None:
    """Append one page in order; runs in a thread."""
    answered: list[Row] = []
    for row in rows:
        if row.segment >= 0:
            answered.append(row)
            continue
        assert blank is not None, "a completed line without a result"
        file.write(slices.read(answered, paths), lines=len(answered))
        answered = []
        file.write((blank.line(row),), lines=1)
    file.write(slices.read(answered, paths), lines=len(answered))


def _require_all(batch: Batch, output: ResultFile, errors: ResultFile) -> None:
    """Refuse to end a batch whose files do not have every line exactly once."""
    if output.lines + errors.lines != batch.counts.total:
        raise BackendError(
            f"{batch.id} has {batch.counts.total} requests, but {output.lines} results and "
            f"{errors.lines} errors were found; it is left as it is",
            retryable=True,
        )


def _numbers(lines: object) -> Sequence[int]:
    return [int(n) for n in lines] if isinstance(lines, list | tuple) else []

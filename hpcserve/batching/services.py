"""All services of batch work, joined: what `wiring` and tests ask for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from hpcserve.batching.again import Again
from hpcserve.batching.batches import Batches
from hpcserve.batching.files import Files
from hpcserve.batching.finalise import Finaliser
from hpcserve.batching.intake import Intake
from hpcserve.batching.leasing import Leasing
from hpcserve.batching.losses import Losses
from hpcserve.batching.places import Places
from hpcserve.batching.results import Results
from hpcserve.batching.segments import Segments
from hpcserve.batching.settling import Settling
from hpcserve.batching.sweep import Sweep
from hpcserve.batching.worker import BatchWorker, Notify, Parts
from hpcserve.config.tree import Batching
from hpcserve.policy.packing.registry import packer
from hpcserve.ports.clock import Clock, Ids
from hpcserve.ports.ledger import Leadership, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchServices:
    """What a gateway needs of batch work."""

    files: Files
    batches: Batches
    again: Again
    results: Results
    #: the port Work, for the control API
    work: Leasing
    segments: Segments

    def close(self) -> None:
        """Let go of open files; all that was acknowledged is on disk."""
        self.segments.close()


def services(
    *, ledger: Ledger, clock: Clock, ids: Ids, settings: Batching, root: Path
) -> BatchServices:
    """Return the services of one gateway process; *root* is the folder of batch files."""
    places = Places(root)
    places.make()
    segments = Segments(ledger=ledger, clock=clock, ids=ids, settings=settings, places=places)
    settling = Settling(ledger=ledger, clock=clock, settings=settings, segments=segments)
    files = Files(ledger=ledger, clock=clock, ids=ids, settings=settings, places=places)
    batches = Batches(ledger=ledger, clock=clock, ids=ids, settings=settings)
    return BatchServices(
        files=files,
        batches=batches,
        again=Again(ledger=ledger, settings=settings, files=files, batches=batches),
        segments=segments,
        results=Results(ledger=ledger, settings=settings),
        work=Leasing(
            ledger=ledger,
            clock=clock,
            settings=settings,
            settling=settling,
            packer=packer(settings.packing),
        ),
    )


def worker(
    *,
    ledger: Ledger,
    clock: Clock,
    ids: Ids,
    settings: Batching,
    root: Path,
    leadership: Callable[[], Leadership | None],
    models: Callable[[], Collection[str]],
    describe: Callable[[str], Mapping[str, object]],
    version: str,
    ended_max: int,
    notify: Notify | None = None,
) -> BatchWorker:
    """Return the worker of one controller process.

    Args:
        ledger: shared with the gateways.
        clock: time.
        ids: names of files.
        settings: the section `[batching]`.
        root: the folder of batch files, shared with the gateways.
        leadership: this controller's, None while another leads.
        models: the names in the catalog, as they stand now.
        describe: what the catalog says of a model, for the manifest.
        version: hpcserve's, for the manifest.
        ended_max: how many of the last ended instances are looked at for lost leases.
        notify: called with each batch that has ended.

    """
    places = Places(root)
    places.make()
    files = Files(ledger=ledger, clock=clock, ids=ids, settings=settings, places=places)
    parts = Parts(
        intake=Intake(ledger=ledger, clock=clock, settings=settings, places=places, models=models),
        finaliser=Finaliser(
            ledger=ledger,
            clock=clock,
            ids=ids,
            settings=settings,
            places=places,
            version=version,
            describe=describe,
        ),
        losses=Losses(ledger=ledger, clock=clock, settings=settings, ended_max=ended_max),
        sweep=Sweep(ledger=ledger, clock=clock, settings=settings, places=places, files=files),
    )
    return BatchWorker(
        ledger=ledger,
        clock=clock,
        settings=settings,
        parts=parts,
        leadership=leadership,
        notify=notify,
    )

"""What came of a simulated run, in the numbers that policies are compared by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from hpcserve.sim.book import Noted

if TYPE_CHECKING:
    from hpcserve.sim.flow import Flow


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One point of the plots."""

    at_s: float
    #: READY instances that chat may use, and those for batch only
    mixed: int
    batch: int
    #: allocated, not READY yet
    starting: int
    queued: int
    gpus: int
    #: interactive requests in flight, and those that wait for a slot
    chat: float
    waiting: float
    #: open batch requests
    backlog: float
    #: so far: interactive requests, and those whose first token came in time
    chat_total: float
    ttft_kept: float
    actions: int


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One run of one policy with one seed."""

    scenario: str
    policy: str
    seed: int
    paid_partition: str = ""
    #: held, by partition
    gpu_hours: dict[str, float] = field(default_factory=dict)
    chat: float = 0.0
    ttft_kept: float = 0.0
    itl_kept: float = 0.0
    itl_seen: float = 0.0
    chat_replayed: float = 0.0
    batch: float = 0.0
    #: due within the run, and not done in time
    batch_due: float = 0.0
    batch_late: float = 0.0
    output_tokens: float = 0.0
    gap_s: float = 0.0
    #: scaling actions and ends of instances
    counts: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    notes: list[Noted] = field(default_factory=list)

    def add(self, flow: Flow, until_s: float) -> None:
        """Take in what one model's users got."""
        served = flow.served
        self.chat += served.chat
        self.ttft_kept += served.ttft_kept
        self.itl_kept += served.itl_kept
        self.itl_seen += served.itl_seen
        self.chat_replayed += served.chat_replayed
        self.batch += served.batch
        due = [b for b in flow.of.batches if b.at_s + b.within_s <= until_s]
        self.batch_due += sum(b.requests for b in due)
        open_late = sum(b.left for b in flow.batches if b.deadline_s <= until_s)
        self.batch_late += served.batch_late + open_late
        self.output_tokens += served.output_tokens
        self.gap_s += served.gap_s

    @property
    def ttft_attainment(self) -> float:
        """Part of the interactive requests whose first token came in time."""
        return self.ttft_kept / self.chat if self.chat else 1.0

    @property
    def itl_attainment(self) -> float:
        """Part of the interactive tokens that came in time."""
        return self.itl_kept / self.itl_seen if self.itl_seen else 1.0

    @property
    def batch_attainment(self) -> float:
        """Part of the batch requests due in the run that were done in time."""
        return 1 - self.batch_late / self.batch_due if self.batch_due else 1.0

    @property
    def total_gpu_hours(self) -> float:
        """All GPU-hours held."""
        return sum(self.gpu_hours.values())

    @property
    def paid_gpu_hours(self) -> float:
        """GPU-hours held outside the opportunistic partition."""
        return self.gpu_hours.get(self.paid_partition, 0.0)

    def figures(self) -> dict[str, float]:
        """Return the row of a table."""
        actions = sum(self.counts.get(a, 0) for a in ("submit", "drain", "stop"))
        return {
            "ttft_attainment": round(self.ttft_attainment, 5),
            "itl_attainment": round(self.itl_attainment, 5),
            "batch_attainment": round(self.batch_attainment, 5),
            "gpu_hours": round(self.total_gpu_hours, 3),
            "paid_gpu_hours": round(self.paid_gpu_hours, 3),
            "gap_s": round(self.gap_s, 1),
            "actions": actions,
            "interactive_requests": round(self.chat),
            "batch_requests_done": round(self.batch),
            "output_tokens": round(self.output_tokens),
            "replayed_requests": round(self.chat_replayed, 1),
        }

    def digest(self) -> str:
        """Return a fingerprint of the whole history."""
        history = {"figures": self.figures(), "counts": self.counts}
        text = json.dumps(
            [history, [asdict(s) for s in self.samples], [asdict(n) for n in self.notes]]
        )
        return hashlib.sha256(text.encode()).hexdigest()

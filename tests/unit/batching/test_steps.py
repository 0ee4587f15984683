from __future__ import annotations

import pytest

from hpcserve.batching.steps import Open, StepKind, decide
from hpcserve.domain.batch import Batch, BatchState, RequestCounts
from tests.builders import NOW, ago, ahead

OPEN = RequestCounts(total=3, waiting=1, leased=1, completed=1)
DONE = RequestCounts(total=3, completed=2, failed=1)


def a_batch(state: BatchState, **fields: object) -> Batch:
    return Batch(
        **{
            "id": "batch-1",
            "owner": "ada",
            "model": "m",
            "endpoint": "/v1/chat/completions",
            "input_file_id": "file-1",
            "completion_window": "24h",
            "state": state,
            "created_at": ago(60),
            "deadline_at": ahead(3600),
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("batch", "kind"),
    [
        (a_batch(BatchState.VALIDATING), StepKind.VALIDATE),
        (a_batch(BatchState.VALIDATING, deadline_at=NOW), StepKind.CLOSE_WINDOW),
        (a_batch(BatchState.IN_PROGRESS, counts=OPEN), None),
        (a_batch(BatchState.IN_PROGRESS, counts=DONE), StepKind.SETTLE),
        (a_batch(BatchState.IN_PROGRESS, counts=OPEN, deadline_at=NOW), StepKind.CLOSE_WINDOW),
        (a_batch(BatchState.IN_PROGRESS, counts=DONE, deadline_at=NOW), StepKind.SETTLE),
        (a_batch(BatchState.FINALIZING, counts=DONE), StepKind.FINALISE),
        (a_batch(BatchState.CANCELLING, counts=OPEN), StepKind.FINALISE),
        (a_batch(BatchState.CANCELLING, model=""), StepKind.ABANDON),
        (a_batch(BatchState.COMPLETED), None),
    ],
)
def test_each_state_has_its_next_step(batch: Batch, kind: StepKind | None) -> None:
    steps = decide(Open(batches=(batch,), busy=frozenset()), NOW)
    assert [step.kind for step in steps] == ([kind] if kind else [])
    assert all(step.reason for step in steps)


def test_a_busy_batch_is_left_alone() -> None:
    view = Open(batches=(a_batch(BatchState.VALIDATING),), busy=frozenset({"batch-1"}))
    assert decide(view, NOW) == ()

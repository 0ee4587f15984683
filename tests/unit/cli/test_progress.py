"""What a person reads of a batch."""

from __future__ import annotations

from datetime import datetime, timedelta

from hpcserve.cli.progress import describe, end, eta, price

SOON = datetime.now().astimezone() + timedelta(hours=2)


def a_progress(**changes: object) -> dict[str, object]:
    batch = {
        "id": "batch-1",
        "status": "in_progress",
        "request_counts": {"total": 100, "completed": 40, "failed": 2},
        "expires_at": SOON.timestamp(),
        "errors": None,
        "hpcserve": {"validated_lines": 7},
    }
    estimate = {
        "p50_at": (SOON - timedelta(minutes=90)).isoformat(),
        "p90_at": (SOON - timedelta(minutes=60)).isoformat(),
        "lines_per_s": 12.34,
        "output_tokens_per_s": 5678.9,
        "instance_hours": 1.5,
        "gpus_per_instance": 4,
    }
    whole = {
        "batch": batch,
        "estimate": estimate,
        "instances": [{"state": "ready"}, {"state": "queued"}, {"state": "ready"}],
        "why_not_more": "inst-3 waits in the queue of Slurm (Resources)",
        "where": "partition preempt of slurm",
    }
    return {**whole, **changes}


def test_a_running_batch_is_told_in_three_lines() -> None:
    counts, when, instances = describe(a_progress())
    assert counts == ("in_progress: 40 of 100 done, 2 failed, 12.3 lines/s, 5679 output tokens/s")
    assert when.endswith("1 h 00 min before its window closes")
    assert instances == (
        "instances: 2 ready, 1 queued; no more because inst-3 waits in the queue of Slurm "
        "(Resources)"
    )


def test_an_estimate_beyond_the_window_shouts() -> None:
    progress = a_progress()
    progress["estimate"] |= {"p90_at": (SOON + timedelta(minutes=5)).isoformat()}
    assert eta(progress).endswith("5 min AFTER its window closes")
    assert eta(a_progress(estimate=None)).startswith("no estimate yet; its window closes ")


def test_the_price_counts_gpus_where_there_are_some() -> None:
    assert price(a_progress()) == "about 6 GPU-hours, on the partition preempt of slurm"
    progress = a_progress(where="the default partition")
    progress["estimate"] |= {"gpus_per_instance": 0}
    assert price(progress) == "about 1.5 instance-hours, on the default partition"
    assert price(a_progress(estimate=None)) == "on the partition preempt of slurm"


def test_the_end_says_what_to_do_about_failures() -> None:
    batch = dict(a_progress()["batch"]) | {"status": "failed"}
    batch["errors"] = {"data": [{"line": 3, "message": "No JSON.", "code": "invalid_json_line"}]}
    first, error, advice = end(batch)
    assert first == "batch-1 is failed: 40 done, 2 failed, 100 in all"
    assert error == "  line 3: No JSON. (invalid_json_line)"
    assert "hpcserve batch retry batch-1" in advice

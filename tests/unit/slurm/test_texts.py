"""What Slurm prints, read: times, tags, exit codes, GRES, accounting."""

from datetime import UTC, datetime

import pytest

from hpcserve.domain.job import EndReason, JobPhase, JobView
from hpcserve.errors import BackendError, ConfigError
from hpcserve.slurm import accounting, squeue
from hpcserve.slurm.partitions import NodeLine, count_gpus
from hpcserve.slurm.tag import Tag
from hpcserve.slurm.times import minutes, parse_duration_s, parse_time


def test_times_are_utc_and_may_be_missing() -> None:
    assert parse_time("2026-11-20T20:12:02") == datetime(2026, 11, 20, 20, 12, 2, tzinfo=UTC)
    assert parse_time("N/A") is None
    assert parse_time("Unknown") is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-00:00:00", 86_400),
        ("02:30:00", 9_000),
        ("10:00", 600),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_durations(text: str, seconds: int | None) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize(("seconds", "limit"), [(1, 1), (60, 1), (61, 2), (3600, 60)])
def test_a_time_limit_is_whole_minutes_and_never_less_than_asked(seconds: int, limit: int) -> None:
    assert minutes(seconds) == limit


def test_a_tag_comes_back_whole_and_only_for_its_site() -> None:
    comment = Tag("site-a").comment("inst-01.x_y")
    assert comment == "hpcserve:site-a:inst-01.x_y"
    assert Tag("site-a").token(comment) == "inst-01.x_y"
    assert Tag("site").token(comment) is None
    assert Tag("site-a").token("hpcserve:site-a:two words") is None
    assert Tag("site-a").token("") is None
    with pytest.raises(ConfigError, match="'two words' cannot stand in a job's comment"):
        Tag("two words")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        # 22.05: a wait status, or one of Slurm's error numbers when the launch failed
        ("0", 0),
        ("768", 3),
        ("9", -9),
        ("139", -11),
        ("4021", None),
        # from 24.11 on
        ("0:0", 0),
        ("3:0", 3),
        ("0:15", -15),
        ("", None),
        ("N/A", None),
    ],
)
def test_exit_codes_of_all_releases(text: str, code: int | None) -> None:
    assert squeue.parse_exit_code(text) == code


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:h100:2", 2),
        ("gpu:2", 2),
        ("gpu:h100:2(S:0-1)", 2),
        ("gpu:h100:2(IDX:0,3)", 2),
        ("gpu:h100:0(IDX:N/A)", 0),
        ("gpu:a100:4(S:0),gpu:h100:4(S:1),nvme:1", 8),
        ("shard:8,mps:100", 0),
        ("(null)", 0),
    ],
)
def test_gpus_of_a_node(gres: str, gpus: int) -> None:
    assert count_gpus(gres) == gpus


@pytest.mark.parametrize(
    ("state", "idle"),
    [
        ("idle", 1),
        ("mixed", 1),
        ("allocated", 1),
        # asleep: Slurm wakes it for a job
        ("idle~", 1),
        # held by backfill for someone else
        ("planned", 0),
        ("mixed-", 0),
        # does not answer
        ("idle*", 0),
        ("down*", 0),
        ("draining", 0),
        ("drained", 0),
        ("completing", 0),
        ("reserved", 0),
        ("maint", 0),
    ],
)
def test_a_gpu_is_idle_only_where_a_job_could_get_it(state: str, idle: int) -> None:
    assert NodeLine("gpu01", "gpu", state, gpus=2, gpus_used=1).gpus_idle == idle


def view(job_id: str, phase: JobPhase) -> JobView:
    return JobView(
        job_id=job_id, token="t", phase=phase, state=phase.name, reason="", partition="gpu"
    )


def test_of_two_jobs_with_one_token_the_one_that_is_further_on_counts() -> None:
    running, waiting = view("2", JobPhase.HELD), view("1", JobPhase.PENDING)
    ended = view("3", JobPhase.GONE)
    assert squeue.by_token([waiting, running, ended]) == {"t": running}
    assert squeue.by_token([ended, waiting]) == {"t": waiting}


def test_a_job_that_waits_in_a_broken_line_is_an_error_not_a_loss() -> None:
    line = "7|RUNNING|None|gpu|gpu01|yesterday|N/A|0|N/A|hpcserve:a:t|\n"
    with pytest.raises(BackendError, match="a time of job 7 that is none"):
        squeue.parse(line, Tag("a"))


SACCT = """\
7|PREEMPTED|scavenger|gpu04|2026-11-20T20:12:00|2026-11-20T20:12:05|0:0|hpcserve:a:inst-7
8|CANCELLED by 0|gpu|gpu[01-02]|2026-11-20T20:12:00|2026-11-20T20:12:05|0:15|
9|COMPLETED|gpu|gpu01|2026-11-20T20:12:00|2026-11-20T20:12:05|0:0|hpcserve:b:inst-9
"""


def test_accounting_knows_the_ends_of_our_jobs_only() -> None:
    tokens = {"inst-7": "7", "inst-8": "8", "inst-9": "9", "inst-10": "10"}
    found = accounting.parse(SACCT, tokens, Tag("a"))
    # 8 is of a site that stores no comments; 9 is another's job under an id that was used again
    assert set(found) == {"inst-7", "inst-8"}
    assert found["inst-7"].end_reason is EndReason.PREEMPTED
    assert found["inst-8"].end_reason is EndReason.CANCELLED_OUTSIDE
    assert found["inst-8"].nodes == ("gpu01", "gpu02")
    assert found["inst-8"].exit_code == -15

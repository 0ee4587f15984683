"""All our jobs from one `squeue`: the question and how its answer is read.

`--Format` with a suffix per field instead of `--json`: its output is the same in 22.05, 24.11 and
26.05 (captured in tests/data/slurm), 22.05 ignores every filter with `--json`, and a site's other
thousand jobs need not be parsed. Two fields decide what the state alone hides: the time of
preemption and the exit code (a wait status in 22.05, `code:signal` from 24.11 on).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hpcserve.domain.job import JobPhase, JobView
from hpcserve.errors import BackendError
from hpcserve.slurm.commands import Commands
from hpcserve.slurm.nodelist import expand
from hpcserve.slurm.states import phase_of
from hpcserve.slurm.tag import Tag
from hpcserve.slurm.times import parse_time

_SEPARATOR = "|"
#: the comment comes last: it is the only field that may hold the separator
_FIELDS = (
    "JobID",
    "State",
    "Reason",
    "Partition",
    "NodeList",
    "StartTime",
    "EndTime",
    "exit_code",
    "PreemptTime",
    "Comment",
)
#: finished jobs are listed until Slurm forgets them (MinJobAge): that is where ends are learnt
ARGV = (
    "squeue",
    "--me",
    "--states=all",
    "--noheader",
    "--Format=" + ",".join(f"{field}:{_SEPARATOR}" for field in _FIELDS),
)

#: more than one byte of exit code or signal cannot come from a process
_CODE_BITS = 8
_SIGNAL_MASK = 0x7F
_CORE_AND_SIGNAL_MASK = 0xFF


class Squeue:
    """Reads our jobs with `squeue`."""

    name = "commands"

    def __init__(self, *, commands: Commands, tag: Tag) -> None:
        """Take how to ask and whose jobs count."""
        self._commands = commands
        self._tag = tag

    async def jobs(self) -> dict[str, JobView]:
        """Return our jobs by token; see `JobsReader`."""
        answer = await self._commands.ask(*ARGV)
        return parse(answer.checked().out, self._tag)


def parse(out: str, tag: Tag) -> dict[str, JobView]:
    """Return our jobs by token; jobs of others are left out unread.

    Raises:
        BackendError: a line of ours cannot be read.

    """
    return by_token(_views(out, tag))


def by_token(views: Iterable[JobView]) -> dict[str, JobView]:
    """Index jobs by token; of two with the same token the one that is further on wins.

    Two exist when an intent was submitted twice because the first answer of `sbatch` was lost.
    """
    order = (JobPhase.GONE, JobPhase.PENDING, JobPhase.HELD)
    jobs: dict[str, JobView] = {}
    for view in views:
        known = jobs.get(view.token)
        if known is None or order.index(view.phase) > order.index(known.phase):
            jobs[view.token] = view
    return jobs


def parse_exit_code(text: str) -> int | None:
    """Return the exit code, minus the signal's number for a death by signal, None if unknown."""
    code, colon, number = text.partition(":")
    if not code.isdigit() or (colon and not number.isdigit()):
        return None
    if colon:
        return -int(number) if int(number) else int(code)
    status = int(code)
    if not status & _SIGNAL_MASK:
        return status >> _CODE_BITS
    # a launch failure leaves one of Slurm's error numbers instead of a wait status
    return -(status & _SIGNAL_MASK) if status <= _CORE_AND_SIGNAL_MASK else None


def _views(out: str, tag: Tag) -> Iterator[JobView]:
    for line in out.splitlines():
        fields = line.split(_SEPARATOR, len(_FIELDS) - 1)
        token = tag.token(fields[-1].removesuffix(_SEPARATOR))
        # a comment of several lines is never ours
        if token is None or len(fields) != len(_FIELDS):
            continue
        job_id, state, reason, partition, nodes, start, end, exit_code, preempted, _ = fields
        try:
            start_at, end_at, preempted_at = map(parse_time, (start, end, preempted))
        except ValueError as error:
            raise BackendError(
                f"squeue prints a time of job {job_id} that is none ({error}); line: {line!r}",
                retryable=False,
            ) from error
        phase, end_reason = phase_of(state, reason=reason, preempted=preempted_at is not None)
        yield JobView(
            job_id=job_id,
            token=token,
            phase=phase,
            state=state,
            reason=reason,
            partition=partition,
            nodes=expand(nodes),
            start_at=start_at,
            end_at=None if phase is JobPhase.PENDING else end_at,
            end_reason=end_reason,
            exit_code=parse_exit_code(exit_code) if phase is JobPhase.GONE else None,
        )

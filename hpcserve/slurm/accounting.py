"""What slurmdbd remembers of jobs that slurmctld has forgotten: one `sacct` for several jobs.

Many sites have no accounting; their `sacct` says so, and is then left alone for a while.
"""

from __future__ import annotations

from collections.abc import Mapping

from hpcserve.domain.job import JobPhase, JobView
from hpcserve.errors import BackendError
from hpcserve.ports.clock import Clock
from hpcserve.slurm.commands import Commands
from hpcserve.slurm.nodelist import expand
from hpcserve.slurm.squeue import parse_exit_code
from hpcserve.slurm.states import phase_of
from hpcserve.slurm.tag import Tag
from hpcserve.slurm.times import parse_time

#: seconds after which a site without accounting is asked again: an admin may have added it
ASK_AGAIN_S = 600.0
_DISABLED = "accounting storage is disabled"
#: the comment comes last: it is the only field that may hold the separator
_FIELDS = "JobIDRaw,State,Partition,NodeList,Start,End,ExitCode,Comment"


class Accounting:
    """Asks `sacct`, as long as there is accounting."""

    def __init__(self, *, commands: Commands, tag: Tag, clock: Clock) -> None:
        """Take how to ask and whose jobs count."""
        self._commands = commands
        self._tag = tag
        self._clock = clock
        self._disabled_until_s = float("-inf")

    async def jobs(self, tokens: Mapping[str, str]) -> dict[str, JobView]:
        """Return what is known of jobs (job id by token), by token.

        Raises:
            BackendError: there is accounting and it does not answer.

        """
        if not tokens or self._clock.monotonic_s() < self._disabled_until_s:
            return {}
        answer = await self._commands.ask(
            "sacct",
            "--allocations",
            "--parsable2",
            "--noheader",
            f"--jobs={','.join(tokens.values())}",
            f"--format={_FIELDS}",
        )
        if _DISABLED in answer.err.lower():
            self._disabled_until_s = self._clock.monotonic_s() + ASK_AGAIN_S
            return {}
        return parse(answer.checked().out, tokens, self._tag)


def parse(out: str, tokens: Mapping[str, str], tag: Tag) -> dict[str, JobView]:
    """Read the answer of `sacct`.

    A site may not store comments; where it does, a job whose comment is not ours is another one
    that got the same id after a re-installation.

    Raises:
        BackendError: a line of ours cannot be read.

    """
    wanted = {job_id: token for token, job_id in tokens.items()}
    fields_n = _FIELDS.count(",") + 1
    found: dict[str, JobView] = {}
    for line in out.splitlines():
        fields = line.split("|", fields_n - 1)
        if len(fields) != fields_n or fields[0] not in wanted:
            continue
        job_id, state, partition, nodes, start, end, exit_code, comment = fields
        token = wanted[job_id]
        if comment and tag.token(comment) != token:
            continue
        phase, end_reason = phase_of(state)
        try:
            start_at, end_at = parse_time(start), parse_time(end)
        except ValueError as error:
            raise BackendError(
                f"sacct prints a time of job {job_id} that is none ({error}); line: {line!r}",
                retryable=False,
            ) from error
        found[token] = JobView(
            job_id=job_id,
            token=token,
            phase=phase,
            state=state,
            reason="",
            partition=partition,
            nodes=expand(nodes),
            start_at=start_at,
            end_at=end_at,
            end_reason=end_reason,
            exit_code=parse_exit_code(exit_code) if phase is JobPhase.GONE else None,
        )
    return found

"""The allocation that this agent runs in, as its environment tells."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from hpcserve.domain.job import EndReason

#: Slurm looks at time limits every 30 s and warns up to a minute before it was asked to
_WARNING_SLACK_S = 90.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Where and for how long we run."""

    job_id: str
    #: the node's name in Slurm, and the name under which other nodes reach it
    node: str
    hostname: str
    #: when the time limit ends it; from the limit that was asked for where the job cannot see it
    ends_at: datetime
    #: Slurm warns so long before that
    notice_s: float
    #: whether the job itself was told `ends_at`
    is_certain: bool

    @classmethod
    def from_environment(
        cls,
        env: Mapping[str, str],
        *,
        hostname: str,
        now: datetime,
        time_limit_s: float,
        notice_s: float,
    ) -> Allocation:
        """Read what Slurm, or submitit's local executor, says.

        SLURM_JOB_END_TIME is there from Slurm 24.11 on; before, the limit asked for stands in. A
        local job may itself run inside a Slurm job, whose variables are not about it.
        """
        is_local = env.get("SUBMITIT_EXECUTOR") == "local"
        slurm = {} if is_local else env
        end = slurm.get("SLURM_JOB_END_TIME", "")
        return cls(
            job_id=env.get("SUBMITIT_LOCAL_JOB_ID" if is_local else "SLURM_JOB_ID", ""),
            node=slurm.get("SLURMD_NODENAME", hostname),
            hostname=hostname,
            ends_at=(
                datetime.fromtimestamp(int(end), UTC)
                if end.isdigit()
                else now + timedelta(seconds=time_limit_s)
            ),
            notice_s=notice_s,
            is_certain=end.isdigit(),
        )

    def cause(self, now: datetime) -> EndReason:
        """Return why a signal that comes *now* comes: the time limit is near, or preemption."""
        left_s = (self.ends_at - now).total_seconds()
        is_near = left_s <= self.notice_s + _WARNING_SLACK_S
        return EndReason.EXPIRED if is_near else EndReason.PREEMPTED


#: Slurm's warning (either of two, sites differ), and what comes last before SIGKILL
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)

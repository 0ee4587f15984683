"""What Slurm's job states mean to an instance: one literal table for 22.05 to 26.05.

The words are those that `squeue`, `sacct` and pyslurm print: the twelve base states, and the flags
that hide a base state while they are set. Rules:

- A word that is not listed is an error that names it, never a guess.
- COMPLETED is no fault of anyone: the agent has said why it left.
- A job that ends by itself in the grace time of a preemption is COMPLETED or FAILED in 22.05 and
  PREEMPTED from 24.11 on. Slurm notes the time of the preemption in all of them, and that decides.
- A job that `sbatch` refused for its size stays in `squeue` for a while, FAILED (BadConstraints).
"""

from __future__ import annotations

from hpcserve.domain.job import EndReason, JobPhase
from hpcserve.errors import BackendError

_P = JobPhase
_R = EndReason

STATES: dict[str, tuple[JobPhase, EndReason | None]] = {
    # base states
    "PENDING": (_P.PENDING, None),
    "RUNNING": (_P.HELD, None),
    "SUSPENDED": (_P.HELD, None),
    "COMPLETED": (_P.GONE, None),
    "CANCELLED": (_P.GONE, _R.CANCELLED_OUTSIDE),
    "FAILED": (_P.GONE, _R.CRASHED),
    "TIMEOUT": (_P.GONE, _R.EXPIRED),
    "NODE_FAIL": (_P.GONE, _R.NODE_FAILED),
    "PREEMPTED": (_P.GONE, _R.PREEMPTED),
    "BOOT_FAIL": (_P.GONE, _R.NODE_FAILED),
    "DEADLINE": (_P.GONE, _R.EXPIRED),
    "OUT_OF_MEMORY": (_P.GONE, _R.OUT_OF_MEMORY),
    # flags of a job that waits (again)
    "REQUEUED": (_P.PENDING, None),
    "REQUEUE_FED": (_P.PENDING, None),
    "REQUEUE_HOLD": (_P.PENDING, None),
    "RESV_DEL_HOLD": (_P.PENDING, None),
    "SPECIAL_EXIT": (_P.PENDING, None),
    "EXPEDITING": (_P.PENDING, None),
    # flags of a job that has its nodes
    "CONFIGURING": (_P.HELD, None),
    "POWER_UP_NODE": (_P.HELD, None),
    "RESIZING": (_P.HELD, None),
    "SIGNALING": (_P.HELD, None),
    "STOPPED": (_P.HELD, None),
    "STAGE_OUT": (_P.HELD, None),
    # over, but its nodes are not free yet; the base state shows when they are
    "COMPLETING": (_P.HELD, None),
    "UPDATE_DB": (_P.HELD, None),
    # flags of a job that is over
    "LAUNCH_FAILED": (_P.GONE, _R.NODE_FAILED),
    "RECONFIG_FAIL": (_P.GONE, _R.NODE_FAILED),
    # a federation runs it elsewhere
    "REVOKED": (_P.GONE, _R.CANCELLED_OUTSIDE),
}

#: ends that look like the job's own doing when Slurm pushed it
_OWN_ENDS = frozenset({None, _R.CRASHED})


#: what squeue gives as the reason of a job that never ran because it never could
_REFUSED = "BadConstraints"


def phase_of(
    state: str, *, reason: str = "", preempted: bool = False
) -> tuple[JobPhase, EndReason | None]:
    """Translate one of Slurm's state words.

    Args:
        state: the word; `sacct` appends who cancelled (`CANCELLED by 1000`).
        reason: Slurm's reason, where it is known.
        preempted: whether Slurm notes a time of preemption.

    Raises:
        BackendError: the word is in no release that we know.

    """
    words = state.split()
    found = STATES.get(words[0].rstrip("+")) if words else None
    if found is None:
        raise BackendError(
            f"Slurm reports the job state {state!r}, which hpcserve does not know (22.05 to 26.05);"
            " add it to hpcserve/slurm/states.py",
            retryable=False,
        )
    phase, end_reason = found
    if phase is JobPhase.GONE and end_reason in _OWN_ENDS:
        if preempted:
            return phase, EndReason.PREEMPTED
        if reason == _REFUSED:
            return phase, EndReason.REJECTED
    return phase, end_reason

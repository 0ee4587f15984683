"""What Slurm's daemons do for a job, on a machine without Slurm; runs as a process of its own.

`python -m hpcserve.slurm.supervisor FOLDER COMMENT LIMIT_S NOTICE_S KILL_WAIT_S LOG GPUS` returns
as soon as the job runs and its record is on disk, and leaves a process behind that outlives the
controller:

- USR2 goes to the job's process NOTICE_S before the limit, as with `--signal=B:USR2@N`;
- at the limit, or when the supervisor gets TERM itself, TERM goes to the job's process group, and
  KILL to what is left of it KILL_WAIT_S later;
- how the job ended goes into the record, in Slurm's words.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

from hpcserve.slurm.process import identify
from hpcserve.slurm.record import SCRIPT, LocalRecord, save

#: seconds between two looks at the clock
_POLL_S = 0.1


class _Job:
    """The job's process group, its limits, and why it was ended when it was."""

    def __init__(
        self,
        script: Path,
        *,
        limit_s: float,
        notice_s: float,
        kill_wait_s: float,
        env: dict[str, str],
    ) -> None:
        self._limit_s = limit_s
        self._notice_after_s = limit_s - notice_s
        self._kill_wait_s = kill_wait_s
        self._is_cancelled = False
        self._is_warned = False
        self._term_s: float | None = None
        self.ended_by: str | None = None
        signal.signal(signal.SIGTERM, self._cancel)
        self._started_s = time.monotonic()
        self._process = subprocess.Popen(  # noqa: S603 - our own script
            ["/bin/bash", str(script)], env=env, start_new_session=True
        )

    def wait(self) -> int:
        """Return the exit code (minus the number of a signal) and leave nothing behind."""
        while True:
            try:
                code = self._process.wait(timeout=_POLL_S)
            except subprocess.TimeoutExpired:
                self._look(time.monotonic())
            else:
                self._signal_group(signal.SIGKILL)
                return code

    def _look(self, now_s: float) -> None:
        """Send the signals that are due."""
        age_s = now_s - self._started_s
        if age_s >= self._notice_after_s and not self._is_warned:
            self._is_warned = True
            self._process.send_signal(signal.SIGUSR2)
        if self._term_s is None and (self._is_cancelled or age_s >= self._limit_s):
            self.ended_by = "CANCELLED" if self._is_cancelled else "TIMEOUT"
            self._term_s = now_s
            self._signal_group(signal.SIGTERM)
        elif self._term_s is not None and now_s - self._term_s >= self._kill_wait_s:
            self._signal_group(signal.SIGKILL)

    def _cancel(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._is_cancelled = True

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def main(argv: list[str]) -> int:
    """Start the job, tell the caller, stay with it to its end."""
    folder, comment, limit_s, notice_s, kill_wait_s, log, gpus = argv
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(ready, 1) else 1
    os.close(ready)
    _detach(Path(log), keep=tell)
    env = dict(os.environ, SUBMITIT_LOCAL_JOB_ID=str(os.getpid()))
    if gpus:
        env["CUDA_VISIBLE_DEVICES"] = gpus
    now = datetime.now(UTC)
    job = _Job(
        Path(folder) / SCRIPT,
        limit_s=float(limit_s),
        notice_s=float(notice_s),
        kill_wait_s=float(kill_wait_s),
        env=env,
    )
    record = LocalRecord(
        comment=comment,
        process=identify(os.getpid()),
        gpus=tuple(int(gpu) for gpu in gpus.split(",") if gpu),
        started_at=now,
        ends_at=now + timedelta(seconds=float(limit_s)),
    )
    save(record, Path(folder))
    os.write(tell, b".")
    code = job.wait()
    state = job.ended_by or ("COMPLETED" if code == 0 else "FAILED")
    reason = signal.Signals(-code).name if code < 0 else ""
    end = record.ended(state, at=datetime.now(UTC), reason=reason, exit_code=code)
    save(end, Path(folder))
    return 0


def _detach(log: Path, *, keep: int) -> None:
    """Leave the caller's session and its pipes; write to the job's log.

    uvloop leaves further copies of its pipes in a child; with one open the caller never hears that
    we have returned.
    """
    os.setsid()
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if number > 2 and number != keep:  # noqa: PLR2004 - the standard streams
            with contextlib.suppress(OSError):
                os.close(number)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

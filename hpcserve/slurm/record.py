"""The record of one local job, on disk: what makes it findable after a restart of the controller.

The job's supervisor writes it (`supervisor`), `local` reads it. The states are Slurm's words, so
that `states` translates them, too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from hpcserve.errors import BackendError
from hpcserve.slurm.process import ProcessId

#: what the supervisor runs, in the job's folder
SCRIPT = "submission.sh"
_FILE = "local.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRecord:
    """One job without Slurm."""

    #: the comment that it would have in Slurm
    comment: str
    #: of the supervisor, which lives as long as the job
    process: ProcessId
    gpus: tuple[int, ...]
    started_at: datetime
    #: when the time limit ends it, or when it ended
    ends_at: datetime
    state: str = "RUNNING"
    reason: str = ""
    exit_code: int | None = None

    @property
    def job_id(self) -> str:
        """The id, as in submitit's local executor."""
        return str(self.process.pid)

    @property
    def is_alive(self) -> bool:
        """Whether the job still runs."""
        return self.state == "RUNNING" and self.process.is_alive

    def ended(self, state: str, *, at: datetime, reason: str, exit_code: int) -> LocalRecord:
        """Return the record of the job after its end."""
        return replace(self, state=state, ends_at=at, reason=reason, exit_code=exit_code)


def save(record: LocalRecord, folder: Path) -> None:
    """Write the record so that a reader sees the old one or the new one."""
    draft = folder / f".{_FILE}"
    draft.write_text(json.dumps(asdict(record), default=datetime.isoformat))
    draft.replace(folder / _FILE)


def load(folder: Path) -> LocalRecord | None:
    """Read the record; None when there is none (the submission never got so far).

    Raises:
        BackendError: it cannot be read now (retryable), or is not a record of this release.

    """
    path = folder / _FILE
    try:
        fields = json.loads(path.read_text())
        return LocalRecord(
            **{
                **fields,
                "process": ProcessId(**fields["process"]),
                "gpus": tuple(fields["gpus"]),
                "started_at": datetime.fromisoformat(fields["started_at"]),
                "ends_at": datetime.fromisoformat(fields["ends_at"]),
            }
        )
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BackendError(
            f"{path} cannot be read ({error.strerror}); nothing is concluded about its job",
            retryable=True,
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise BackendError(
            f"{path} cannot be read as the record of a job ({error}); end the job by hand and"
            f" remove {folder}",
            retryable=False,
        ) from error

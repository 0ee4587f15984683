"""What is handed to the scheduler: a batch script and a pickle, both made by submitit.

submitit writes the `#SBATCH` lines and, in the job, loads the pickle and runs our function in it.
Its own `submit` is not used: it blocks, knows no time limit, and names the pickle after the job id
only once `sbatch` has answered, so that a controller that dies in between leaves a job that waits
for its pickle and fails. Here the pickle lies in place first and the job links it to its own id.

Rules:

- The python in the job replaces the shell (`exec`): only then does the batch process get
  `--signal=B:USR2`; a shell that does not trap it would die of it.
- Secrets travel in the pickle alone (mode 0600 in a folder of mode 0700), never in the script, in
  the comment, on a command line or in the environment.
- A job is never requeued; a replacement is a new job.
- Standard output and error of the job go to `job.log` in the instance's folder.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import _make_sbatch_string

from hpcserve.domain.job import AgentOrder, JobSpec
from hpcserve.errors import BackendError
from hpcserve.slurm.record import SCRIPT
from hpcserve.slurm.tag import Tag
from hpcserve.slurm.times import minutes

#: name of the job's output in `AgentOrder.instance_dir`
JOB_LOG = "job.log"
_PICKLE = "order.pkl"


class Submission:
    """Makes the files of each job of this site."""

    def __init__(
        self,
        *,
        tag: Tag,
        jobs_dir: Path,
        entry: Callable[[AgentOrder], None],
        python: str,
        python_path: Sequence[str] = (),
        setup: Sequence[str] = (),
    ) -> None:
        """Take what all jobs have in common.

        Args:
            tag: whose jobs they are.
            jobs_dir: folder on the shared file system; each job gets a folder in it.
            entry: what runs in the job; importable there under its own name.
            python: the interpreter on the nodes.
            python_path: folders that make `entry` importable where hpcserve is not installed.
            setup: shell lines before the agent starts (`module load cuda`).

        """
        self.tag = tag
        self.python_path = os.pathsep.join(python_path)
        self.jobs_dir = jobs_dir
        self._entry = entry
        self._python = python
        self._setup = list(setup)
        if python_path:
            path = shlex.quote(self.python_path)
            self._setup.append(f'export PYTHONPATH={path}"${{PYTHONPATH:+:$PYTHONPATH}}"')

    def folder(self, token: str) -> Path:
        """Return the folder of one job's files."""
        return self.jobs_dir / token

    def log(self, spec: JobSpec) -> Path:
        """Return the file that the job's output goes to."""
        return Path(spec.order.instance_dir) / JOB_LOG

    def slurm_script(self, spec: JobSpec) -> str:
        """Return the batch script for Slurm."""
        gpu = f"gpu:{spec.gpu_type}" if spec.gpu_type else "gpu"
        exact: dict[str, str | int | bool] = {
            "no-requeue": True,
            "signal": f"B:USR2@{notice_s(spec)}",
            "output": str(self.log(spec)),
            "chdir": spec.order.instance_dir,
        }
        if spec.time_min_s is not None:
            exact["time-min"] = minutes(min(spec.time_min_s, spec.time_limit_s))
        return _make_sbatch_string(
            command=self._command(spec.token),
            folder=self.folder(spec.token),
            job_name=spec.name,
            partition=spec.partition,
            qos=spec.qos,
            account=spec.account,
            nodes=spec.nodes,
            ntasks_per_node=1,
            cpus_per_task=spec.cpus_per_node,
            mem=f"{spec.memory_gib_per_node}G",
            gres=f"{gpu}:{spec.gpus_per_node}" if spec.gpus_per_node else None,
            time=minutes(spec.time_limit_s),
            comment=self.tag.comment(spec.token),
            # submitit would ask for the wckey "submitit", which sites with wckeys refuse
            wckey=None,  # type: ignore[arg-type]  # submitit leaves out what is None
            stderr_to_stdout=True,
            use_srun=False,
            setup=[*self._setup, self._link_pickle(spec.token, "$SLURM_JOB_ID")],
            additional_parameters=exact,
        )

    def local_script(self, spec: JobSpec) -> str:
        """Return the script for a plain process on this machine."""
        lines = [
            "#!/bin/bash",
            *self._setup,
            self._link_pickle(spec.token, "$SUBMITIT_LOCAL_JOB_ID"),
            "export SUBMITIT_EXECUTOR=local SUBMITIT_LOCAL_NTASKS=1 SUBMITIT_LOCAL_NODEID=0",
            "export SUBMITIT_LOCAL_JOB_NUM_NODES=1 SUBMITIT_LOCAL_LOCALID=0",
            "export SUBMITIT_LOCAL_GLOBALID=0",
            self._command(spec.token),
        ]
        return "\n".join(lines) + "\n"

    def write(self, spec: JobSpec, script: str) -> Path:
        """Write the pickle and the script; return the script's path. Writing twice is harmless.

        Raises:
            BackendError: the folder cannot be written.

        """
        folder = self.folder(spec.token)
        try:
            for path in (folder, Path(spec.order.instance_dir)):
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            pickle = folder / _PICKLE
            pickle.touch(mode=0o600)
            delayed = DelayedSubmission(self._entry, spec.order)
            delayed.set_timeout(minutes(spec.time_limit_s), 0)
            delayed.dump(pickle)
            path = folder / SCRIPT
            path.write_text(script)
        except OSError as error:
            raise BackendError(
                f"the files of job {spec.name} cannot be written to {folder} ({error.strerror});"
                " the state folder must be on a file system that nodes share",
                retryable=True,
            ) from error
        return path

    def _command(self, token: str) -> str:
        """Return the shell line that becomes the job's process."""
        argv = [self._python, "-u", "-m", "submitit.core._submit", str(self.folder(token))]
        return "exec " + shlex.join(argv)

    def _link_pickle(self, token: str, job_id: str) -> str:
        """Return the shell line that gives the pickle the name that submitit looks for."""
        folder = shlex.quote(str(self.folder(token)))
        return f'ln -sfn {_PICKLE} {folder}/"{job_id}"_submitted.pkl'


def notice_s(spec: JobSpec) -> int:
    """Return how long before its limit the job is warned.

    At most half the limit: a notice that is not shorter than the limit comes at the start.
    """
    return max(1, min(spec.notice_s, spec.time_limit_s // 2))

"""Which back end serves a site, and why.

`auto` asks the machine: no `sbatch`, or one without any configuration, means that there is no Slurm
here, and jobs become local processes. A Slurm that is configured but does not answer is an error,
not a reason to start engines on a login node.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from hpcserve.errors import BackendError, ConfigError
from hpcserve.ports.clock import Clock
from hpcserve.ports.cluster import Cluster
from hpcserve.slurm.cluster import JobsReader, SlurmCluster
from hpcserve.slurm.commands import Commands
from hpcserve.slurm.local import LocalCluster
from hpcserve.slurm.pyslurm import MODULE, PySlurm, mismatch
from hpcserve.slurm.squeue import Squeue
from hpcserve.slurm.submission import Submission

#: the choices of `[slurm] backend`
BACKENDS = ("auto", "cli", "pyslurm", "local")

_VERSION = re.compile(r"\d+\.\d+(\.\d+)?")
#: what clients say when there is neither a file nor the name of a slurmctld that hands one out;
#: that "a configuration source" is missing they say also while that slurmctld is away
_NO_CONFIGURATION = "dns srv lookup failed"


async def _nothing_to_close() -> None:
    """Close nothing: most back ends keep nothing running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A back end and the sentence that says why."""

    cluster: Cluster
    reason: str
    #: ends what the back end keeps running
    close: Callable[[], Awaitable[None]] = _nothing_to_close


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What every back end is made of."""

    commands: Commands
    submission: Submission
    clock: Clock
    #: the interpreter that hpcserve runs in
    python: str
    #: GPUs of this machine, for the local back end
    local_gpus: int
    pyslurm_module: str = MODULE


async def choose(backend: str, parts: Parts) -> Choice:
    """Make the back end that the configuration names.

    Raises:
        ConfigError: there is no back end of this name.
        BackendError: it cannot be used here; retryable when Slurm only does not answer.

    """
    if backend not in BACKENDS:
        raise ConfigError(f"[slurm] backend is {backend!r}; choose one of {', '.join(BACKENDS)}")
    if backend == "local":
        return Choice(cluster=_local(parts), reason="[slurm] backend asks for it")
    if backend == "auto":
        absent = await _why_no_slurm(parts.commands)
        if absent is not None:
            return Choice(cluster=_local(parts), reason=absent)
    version = await slurm_version(parts.commands)
    tag = parts.submission.tag
    squeue = Squeue(commands=parts.commands, tag=tag)
    if backend == "cli":
        cluster = _slurm(parts, squeue, version)
        return Choice(cluster=cluster, reason="[slurm] backend asks for it")
    pyslurm = PySlurm(commands=parts.commands, tag=tag, module=parts.pyslurm_module)
    unusable = await _why_no_pyslurm(pyslurm, version)
    if unusable is not None:
        await pyslurm.close()
        if backend == "pyslurm":
            raise unusable
        cluster = _slurm(parts, squeue, version)
        return Choice(cluster=cluster, reason=f"Slurm {version} answers; {unusable.message}")
    return Choice(
        cluster=_slurm(parts, pyslurm, version),
        reason=f"Slurm {version} answers and pyslurm matches it",
        close=pyslurm.close,
    )


async def slurm_version(commands: Commands) -> str:
    """Return the release of the Slurm commands (`22.05.8`)."""
    answer = (await commands.ask("sbatch", "--version")).checked()
    match = _VERSION.search(answer.out)
    if match is None:
        raise BackendError(
            f"sbatch --version prints {answer.out.strip()!r}, which names no release",
            retryable=False,
        )
    return match[0]


async def _why_no_slurm(commands: Commands) -> str | None:
    """Say why this machine has no Slurm; None when it has.

    Raises:
        BackendError: it has one that does not answer.

    """
    if shutil.which("sbatch", path=commands.env.get("PATH", "")) is None:
        return "there is no sbatch on PATH"
    answer = await commands.ask("scontrol", "ping")
    if _NO_CONFIGURATION in answer.err.lower():
        return "sbatch is installed but no Slurm cluster is configured here"
    if answer.code != 0:
        raise BackendError(
            "Slurm is configured here but its controller does not answer scontrol ping;"
            ' wait for it, or set [slurm] backend = "local" to run jobs on this machine',
            retryable=True,
        )
    return None


async def _why_no_pyslurm(pyslurm: PySlurm, slurm: str) -> BackendError | None:
    try:
        why = mismatch(await pyslurm.version(), slurm)
    except BackendError as error:
        return error
    return None if why is None else BackendError(why, retryable=False)


def _slurm(parts: Parts, reader: JobsReader, version: str) -> SlurmCluster:
    return SlurmCluster(
        reader=reader,
        commands=parts.commands,
        submission=parts.submission,
        clock=parts.clock,
        version=version,
    )


def _local(parts: Parts) -> LocalCluster:
    return LocalCluster(
        commands=parts.commands,
        submission=parts.submission,
        clock=parts.clock,
        supervisor_python=parts.python,
        gpus=parts.local_gpus,
    )

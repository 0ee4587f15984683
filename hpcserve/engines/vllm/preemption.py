"""Whether interactive requests take slots from batch requests inside vLLM, and what asks for it.

`plugins/hpcserve_scheduler.py` does it, through an interface of vLLM that is not public. So it is
used with releases that it was tested with and in modes that it was tested in; anything else serves
without it, and the reason is shown. The release is read from the folder names of the engine's own
environment: to ask vLLM itself takes ten seconds.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpcserve.domain.model import Model

#: releases that `tests/integration/vllm` has passed with
VLLM_TESTED = frozenset({"0.32.0"})
SCHEDULER = "hpcserve_scheduler.InteractiveFirst"
#: names the file with the number of slots that batch may hold
SLOTS_VARIABLE = "HPCSERVE_BATCH_SLOTS"
#: marks a request as batch, whatever its body says; any positive number does
BATCH_HEADERS: Mapping[str, str] = {"x-vllm-priority": "1000"}

#: arguments of a catalog entry that the scheduler was not tested with
_FOREIGN = (
    "--scheduler-cls",
    "--scheduling-policy",
    "--no-async-scheduling",
    "--speculative-config",
    "--runner",
    "--kv-transfer-config",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preemption:
    """How vLLM is started for it: with nothing where it is off."""

    arguments: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    batch_headers: Mapping[str, str] = field(default_factory=dict)
    slots_file: str | None = None
    #: why it is off
    note: str = ""


def preemption(
    model: Model, *, command: tuple[str, ...], is_wanted: bool, scratch: Path
) -> Preemption:
    """Return what to start vLLM with."""
    note = _why_not(model, command) if is_wanted else "[engine] plugin is off"
    if note:
        return Preemption(note=f"chat takes no slots from batch: {note}")
    slots_file = str(scratch / "batch_slots")
    return Preemption(
        arguments=("--scheduling-policy", "priority", "--scheduler-cls", SCHEDULER),
        env={SLOTS_VARIABLE: slots_file},
        batch_headers=BATCH_HEADERS,
        slots_file=slots_file,
    )


def installed_versions(command: tuple[str, ...]) -> frozenset[str]:
    """Return the releases of vLLM in the environment of its command, without `+cpu` and the like.

    Empty where that cannot be told, as in a container.
    """
    found = shutil.which(command[0]) if command else None
    if found is None:
        return frozenset()
    root = Path(found).resolve().parent.parent
    folders = root.glob("lib*/python3*/*-packages/vllm-*.dist-info")
    names = (folder.name.removeprefix("vllm-").removesuffix(".dist-info") for folder in folders)
    return frozenset(name.partition("+")[0] for name in names)


def _why_not(model: Model, command: tuple[str, ...]) -> str:
    versions = installed_versions(command)
    tested = ", ".join(sorted(VLLM_TESTED))
    if not versions:
        return f"the release of vLLM behind {' '.join(command)!r} cannot be told; tested: {tested}"
    if not versions <= VLLM_TESTED:
        return f"vLLM {', '.join(sorted(versions))} is not among those tested: {tested}"
    if model.pipeline_parallel > 1:
        return "not tested with pipeline_parallel"
    for argument in model.engine_args:
        if (name := argument.partition("=")[0]) in _FOREIGN:
            return f"not tested with {name} of engine_args"
    return ""

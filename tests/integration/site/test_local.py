"""A site without any Slurm: the same job on processes of this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.running_site import (
    FAKE,
    RunningSite,
    assert_exactly_once,
    chat_line,
    running_site,
)

pytestmark = pytest.mark.timeout(180)

ON_CPU = {**FAKE, "gpus_per_node": 0, "min_instances": 1}
SLURM = ("sbatch", "squeue", "scancel", "sinfo", "scontrol", "sacct", "srun", "salloc")


@contextmanager
def site_without_slurm(
    folder: Path, model: dict[str, object], settings: dict[str, dict[str, object]]
) -> Iterator[RunningSite]:
    """Run a site whose PATH has all of this machine's programs but Slurm's."""
    for place in ("/usr/bin", "/bin"):
        for program in Path(place).iterdir():
            if program.name not in SLURM and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder))
        patch.delenv("SLURM_CONF", raising=False)
        with running_site(None, {"m": model}, settings) as site:
            yield site


def test_the_main_job_without_slurm(tmp_path: Path) -> None:
    names = [f"line-{n}" for n in range(50)]
    auto: dict[str, dict[str, object]] = {"slurm": {"backend": "auto"}}
    with site_without_slurm(tmp_path, ON_CPU, auto) as site:
        batch = site.submit(chat_line(name, "m") for name in names)
        assert "50 done" in site.cli("batch", "wait", batch)
        assert_exactly_once(site.results(batch), names)
        assert "[DONE]" in list(site.stream("m", max_tokens=5))
        assert "no Slurm" in site.cli("status")
        # the processes outlive the controller, and the next one knows them
        (before,) = site.instances("ready")
        site.kill()
        site.start()
        (after,) = site.wait_ready()
        assert after["job_id"] == before["job_id"]
        site.cli("admin", "instance", "stop", after["id"])
        assert site.wait_ended(after["id"])["end_reason"] == "scaled_in"
        up = site.processes["up"]
        site.kill("up", signal.SIGTERM)
        assert up.returncode == 0


def test_a_successor_is_ready_before_the_time_limit(tmp_path: Path) -> None:
    # its limits are exact to the second, unlike Slurm's
    local: dict[str, dict[str, object]] = {"slurm": {"backend": "local", "notice_s": 2}}
    with site_without_slurm(
        tmp_path, {**ON_CPU, "max_instances": 2, "time_limit_s": 32}, local
    ) as site:
        (first,) = site.wait_ready()
        answers = []

        def handed_over() -> bool:
            answers.append(site.chat("m").status_code)
            return site.ended(first["id"]) is not None

        site.wait("its end", handed_over, 80)
        assert set(answers) == {200}
        (second,) = site.instances("ready")
        gone = site.ended(first["id"])
        assert gone is not None
        assert (gone["end_reason"], gone["id"]) == ("drained", first["id"])
        assert second["ready_at"] < gone["ended_at"] < first["ends_at"]
        assert os.environ["PATH"] == str(tmp_path)

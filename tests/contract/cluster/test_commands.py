"""The cluster contract by Slurm's commands, in the dialects of the oldest and newest release."""

import time
from pathlib import Path

import pytest

from hpcserve.errors import BackendError
from hpcserve.slurm.commands import Commands
from tests.contract.cluster.fakesite import FakeSite
from tests.contract.cluster.suite import SlurmContract


@pytest.fixture(params=["22.05.8", "26.05.5"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> FakeSite:
    return FakeSite(tmp_path, request.param)


class TestCommands(SlurmContract):
    async def test_a_command_that_hangs_is_given_up_in_time(self, site: FakeSite) -> None:
        (site.state / "hangs").touch()
        site.commands.timeout_s = 0.5
        cluster = site.cluster()
        began = time.monotonic()
        with pytest.raises(BackendError, match=r"squeue gave no answer within 0\.5 s") as caught:
            await cluster.jobs()
        assert caught.value.retryable
        assert time.monotonic() - began < 5

    async def test_a_missing_command_is_named(self, site: FakeSite) -> None:
        site.commands.env["PATH"] = "/nonexistent"
        with pytest.raises(BackendError, match="squeue cannot be started") as caught:
            await site.cluster().jobs()
        assert not caught.value.retryable

    async def test_a_site_without_accounting_is_not_asked_each_time(self, site: FakeSite) -> None:
        cluster = site.cluster()
        for _ in range(3):
            assert await cluster.accounted({"inst-1": "1"}) == {}
        assert site.calls("sacct") == 1


async def test_commands_get_only_the_environment_that_is_meant_for_them() -> None:
    env = {
        "PATH": "/usr/bin:/bin",
        "SLURM_CONF": "/etc/slurm.conf",
        "SLURM_JOB_ID": "7",
        "SBATCH_PARTITION": "elsewhere",
        "SQUEUE_FORMAT": "%i",
        "HPCSERVE_DATABASE_URL": "postgresql://user:password@host/db",
    }
    answer = await Commands(env=env, timeout_s=5).ask("env")
    assert set(answer.out.splitlines()) >= {"SLURM_CONF=/etc/slurm.conf", "TZ=UTC"}
    assert "password" not in answer.out
    assert "SLURM_JOB_ID" not in answer.out
    assert "SBATCH_PARTITION" not in answer.out
    assert "SQUEUE_FORMAT" not in answer.out

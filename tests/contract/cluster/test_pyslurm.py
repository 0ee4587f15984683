"""The cluster contract through pyslurm, by a stand-in for the module."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hpcserve.errors import BackendError
from hpcserve.slurm.cluster import JobsReader
from hpcserve.slurm.pyslurm import PySlurm, mismatch
from hpcserve.slurm.tag import Tag
from tests.contract.cluster.fakesite import FakeSite
from tests.contract.cluster.suite import SlurmContract

STAND_IN = "tests.contract.cluster.pyslurm_standin"


class PySlurmSite(FakeSite):
    """A fake Slurm 25.11 whose jobs are read through pyslurm."""

    squeues_per_question = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "25.11.2")
        self.readers: list[PySlurm] = []

    def reader(self, site: str) -> JobsReader:
        self.readers.append(PySlurm(commands=self.commands, tag=Tag(site), module=STAND_IN))
        return self.readers[-1]

    def loads(self) -> int:
        path = self.state / "loads"
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[PySlurmSite]:
    site = PySlurmSite(tmp_path)
    yield site
    for reader in site.readers:
        await reader.close()


class TestPySlurm(SlurmContract):
    async def test_a_question_is_one_load(self, site: PySlurmSite) -> None:
        cluster = site.cluster()
        for _ in range(3):
            await cluster.jobs()
        assert site.loads() == 3
        assert site.calls("squeue") == 0

    async def test_pyslurm_that_hangs_is_given_up_and_replaced(self, site: PySlurmSite) -> None:
        cluster = site.cluster()
        await cluster.jobs()
        site.commands.timeout_s = 0.5
        reader = PySlurm(commands=site.commands, tag=Tag("test"), module=STAND_IN)
        site.readers.append(reader)
        (site.state / "hangs").touch()
        with pytest.raises(BackendError, match="pyslurm gave no answer") as caught:
            await reader.jobs()
        assert caught.value.retryable
        (site.state / "hangs").unlink()
        site.commands.timeout_s = 10
        assert await cluster.jobs()

    async def test_a_controller_that_has_moved_is_found_again(self, site: PySlurmSite) -> None:
        cluster = site.cluster()
        await cluster.jobs()
        (site.state / "address").write_text("another host")
        with pytest.raises(BackendError, match="Slurm does not answer pyslurm"):
            await cluster.jobs()
        assert await cluster.jobs()

    async def test_a_pyslurm_that_is_not_there_is_named(self, site: PySlurmSite) -> None:
        reader = PySlurm(commands=site.commands, tag=Tag("test"), module="no_such_module")
        with pytest.raises(BackendError, match="No module named 'no_such_module'") as caught:
            await reader.version()
        assert not caught.value.retryable


def test_only_the_release_of_pyslurm_must_match() -> None:
    assert mismatch("25.11.2", "25.11.7") is None
    why = mismatch("25.11.2", "22.05.8")
    assert why is not None
    assert "pyslurm 25.11.2 belongs to Slurm 25.11 and this site runs 22.05.8" in why

"""Which back end a machine gets, and that it is told why."""

import sys
from pathlib import Path

import pytest

from hpcserve.errors import BackendError, ConfigError
from hpcserve.slurm.choose import Parts, choose
from hpcserve.slurm.commands import Commands
from tests.contract.cluster.fakesite import FakeSite
from tests.contract.cluster.suite import WallClock
from tests.contract.cluster.test_pyslurm import STAND_IN

# what scontrol ping of 22.05 and 25.11 prints
NO_CONFIGURATION = """#!/bin/sh
echo "scontrol: error: resolve_ctls_from_dns_srv: res_nsearch error: Unknown host" >&2
echo "scontrol: error: fetch_config: DNS SRV lookup failed" >&2
echo "scontrol: error: _establish_config_source: failed to fetch config" >&2
echo "scontrol: fatal: Could not establish a configuration source" >&2
exit 1
"""

# where SLURM_CONF_SERVER or DNS names a slurmctld that does not answer
CONFIGURATION_IS_AWAY = """#!/bin/sh
echo "scontrol: error: _fetch_child: failed to fetch remote configs:" \\
  "Unable to contact slurm controller (connect failure)" >&2
echo "scontrol: error: _establish_config_source: failed to fetch config" >&2
echo "scontrol: fatal: Could not establish a configuration source" >&2
exit 1
"""


def parts(site: FakeSite, **fields: object) -> Parts:
    base = {
        "commands": site.commands,
        "submission": site.submission("test"),
        "clock": WallClock(),
        "python": sys.executable,
        "local_gpus": 0,
        "pyslurm_module": "no_such_module",
    }
    return Parts(**{**base, **fields})


@pytest.fixture
def site(tmp_path: Path) -> FakeSite:
    return FakeSite(tmp_path, "25.11.2")


async def test_slurm_that_answers_is_used_by_its_commands(site: FakeSite) -> None:
    choice = await choose("auto", parts(site))
    assert choice.cluster.description == "Slurm 25.11.2 (commands)"
    assert "Slurm 25.11.2 answers; pyslurm cannot be loaded" in choice.reason


async def test_pyslurm_that_matches_is_preferred(site: FakeSite) -> None:
    choice = await choose("auto", parts(site, pyslurm_module=STAND_IN))
    assert choice.cluster.description == "Slurm 25.11.2 (pyslurm)"
    assert choice.reason == "Slurm 25.11.2 answers and pyslurm matches it"
    await choice.close()


async def test_pyslurm_of_another_release_is_refused_when_asked_for(site: FakeSite) -> None:
    (site.state / "release").write_text("24.11.5")
    with pytest.raises(BackendError, match=r"belongs to Slurm 25\.11 and this site runs 24\.11\.5"):
        await choose("pyslurm", parts(site, pyslurm_module=STAND_IN))
    choice = await choose("auto", parts(site, pyslurm_module=STAND_IN))
    assert choice.cluster.description == "Slurm 24.11.5 (commands)"
    assert "belongs to Slurm 25.11" in choice.reason


async def test_pyslurm_without_a_configuration_is_awaited_when_asked_for(site: FakeSite) -> None:
    (site.state / "no_configuration").touch()
    with pytest.raises(BackendError, match="pyslurm ended while it was loaded") as caught:
        await choose("pyslurm", parts(site, pyslurm_module=STAND_IN))
    assert caught.value.retryable
    choice = await choose("auto", parts(site, pyslurm_module=STAND_IN))
    assert choice.cluster.description == "Slurm 25.11.2 (commands)"


async def test_without_sbatch_jobs_are_processes(site: FakeSite) -> None:
    bare = Commands(env={"PATH": "/nonexistent"}, timeout_s=5)
    choice = await choose("auto", parts(site, commands=bare))
    assert choice.cluster.description == "processes on this machine (no Slurm)"
    assert choice.reason == "there is no sbatch on PATH"


async def test_without_a_configured_cluster_jobs_are_processes(site: FakeSite) -> None:
    (site.folder / "bin" / "scontrol").write_text(NO_CONFIGURATION)
    choice = await choose("auto", parts(site))
    assert choice.cluster.description == "processes on this machine (no Slurm)"
    assert "no Slurm cluster is configured" in choice.reason


async def test_a_silent_controller_is_no_reason_to_run_on_the_login_node(site: FakeSite) -> None:
    site.controller_down()
    with pytest.raises(BackendError, match="does not answer scontrol ping") as caught:
        await choose("auto", parts(site))
    assert caught.value.retryable


async def test_nor_is_a_controller_that_hands_out_the_configuration(site: FakeSite) -> None:
    (site.folder / "bin" / "scontrol").write_text(CONFIGURATION_IS_AWAY)
    with pytest.raises(BackendError, match="does not answer scontrol ping") as caught:
        await choose("auto", parts(site))
    assert caught.value.retryable


async def test_what_is_asked_for_is_taken(site: FakeSite) -> None:
    assert (await choose("cli", parts(site))).cluster.description == "Slurm 25.11.2 (commands)"
    local = await choose("local", parts(site))
    assert local.cluster.description == "processes on this machine (no Slurm)"
    with pytest.raises(ConfigError, match="choose one of auto, cli, pyslurm, local"):
        await choose("pbs", parts(site))

from __future__ import annotations

from pathlib import Path

import pytest

from hpcserve.domain.model import EngineKind
from hpcserve.engines.fake import settings
from hpcserve.engines.registry import engines
from hpcserve.engines.vllm import launch as vllm_launch
from hpcserve.engines.vllm.launch import VllmAdapter
from hpcserve.errors import ConfigError
from hpcserve.ports.engine import Launch
from tests.builders import a_model

ENGINES = engines(vllm=("/opt/engine/bin/vllm",), allow_downloads=False, shutdown_timeout_s=20)


def launch(**fields: object) -> Launch:
    model = a_model("m", **fields)
    return ENGINES[model.engine].launch(
        model, host="10.0.0.1", port=4711, key="secret", scratch_dir="/scratch/7"
    )


def value_of(argv: tuple[str, ...], flag: str) -> str:
    """Return the value that counts: argparse takes the last one."""
    return argv[len(argv) - argv[::-1].index(flag)]


def test_there_is_an_adapter_for_every_kind() -> None:
    assert set(ENGINES) == set(EngineKind)


def test_vllm_gets_what_the_model_says() -> None:
    argv = launch(
        weights="/models/m", tensor_parallel=4, kv_cache_mib=64, revision="abc", dtype="bfloat16"
    ).argv
    assert argv[:3] == ("/opt/engine/bin/vllm", "serve", "/models/m")
    assert value_of(argv, "--tensor-parallel-size") == "4"
    assert value_of(argv, "--kv-cache-memory-bytes") == str(64 * 1024 * 1024)
    assert value_of(argv, "--revision") == "abc"
    assert value_of(argv, "--dtype") == "bfloat16"
    assert value_of(argv, "--max-model-len") == "8192"


def test_what_the_model_leaves_open_is_left_to_vllm() -> None:
    argv = launch().argv
    assert "--kv-cache-memory-bytes" not in argv
    assert "--revision" not in argv


@pytest.mark.parametrize("engine", list(EngineKind))
def test_the_catalog_cannot_move_the_engine_to_another_address(engine: EngineKind) -> None:
    argv = launch(engine=engine, engine_args=("--host", "0.0.0.0", "--port", "80")).argv
    assert value_of(argv, "--host") == "10.0.0.1"
    assert value_of(argv, "--port") == "4711"
    assert value_of(argv, "--shutdown-timeout") == "20"


@pytest.mark.parametrize("engine", list(EngineKind))
def test_the_key_is_in_the_environment_and_never_in_argv(engine: EngineKind) -> None:
    started = launch(engine=engine, engine_env={settings.KEY_VARIABLE: "forged"})
    assert "secret" not in " ".join(started.argv)
    assert started.env[settings.KEY_VARIABLE] == "secret"


def test_the_guard_is_found_by_vllm_alone() -> None:
    started = launch(engine_env={"PYTHONPATH": "/site/plugins"})
    assert value_of(started.argv, "--middleware") == "hpcserve_guard.Guard"
    assert (vllm_launch.PLUGINS / "hpcserve_guard.py").is_file()
    assert started.env["PYTHONPATH"] == f"{vllm_launch.PLUGINS}:/site/plugins"


def test_caches_lie_in_scratch_unless_the_catalog_says_otherwise() -> None:
    env = launch(engine_env={"HF_HOME": "/shared/hf"}).env
    assert env["HF_HOME"] == "/shared/hf"
    for name in ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR"):
        assert env[name].startswith("/scratch/7/")


def test_downloads_are_off_unless_allowed() -> None:
    assert launch().env["HF_HUB_OFFLINE"] == "1"
    online = engines(vllm=("vllm",), allow_downloads=True, shutdown_timeout_s=0)
    started = online[EngineKind.VLLM].launch(
        a_model("m"), host="h", port=1, key="k", scratch_dir="/s"
    )
    assert started.env["HF_HUB_OFFLINE"] == "0"


def an_environment(folder: Path, *versions: str) -> tuple[str, ...]:
    """Make what an engine's environment looks like from outside; return its command."""
    packages = folder / "lib" / "python3.11" / "site-packages"
    for version in versions:
        (packages / f"vllm-{version}.dist-info").mkdir(parents=True)
    command = folder / "bin" / "vllm"
    command.parent.mkdir()
    command.touch(mode=0o755)
    return (str(command),)


def launch_with(command: tuple[str, ...], *, preempts: bool = True, **fields: object) -> Launch:
    adapter = VllmAdapter(
        command=command, allow_downloads=False, shutdown_timeout_s=1, preempts=preempts
    )
    return adapter.launch(a_model("m", **fields), host="h", port=1, key="k", scratch_dir="/s")


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.32.0+cu130"])
def test_chat_takes_slots_from_batch_with_a_tested_release(tmp_path: Path, version: str) -> None:
    started = launch_with(an_environment(tmp_path, version))
    assert value_of(started.argv, "--scheduler-cls") == "hpcserve_scheduler.InteractiveFirst"
    assert value_of(started.argv, "--scheduling-policy") == "priority"
    assert (vllm_launch.PLUGINS / "hpcserve_scheduler.py").is_file()
    assert started.slots_file == started.env["HPCSERVE_BATCH_SLOTS"] == "/s/batch_slots"
    assert started.batch_headers
    assert not started.note


@pytest.mark.parametrize(
    ("versions", "fields", "words"),
    [
        (("0.33.0",), {}, "vLLM 0.33.0 is not among those tested: 0.32.0"),
        (("0.32.0", "0.31.1"), {}, "vLLM 0.31.1, 0.32.0 is not"),
        ((), {}, "cannot be told"),
        (("0.32.0",), {"pipeline_parallel": 2}, "pipeline_parallel"),
        (("0.32.0",), {"engine_args": ("--scheduling-policy=fcfs",)}, "--scheduling-policy of"),
        (("0.32.0",), {"engine_args": ("--runner", "pooling")}, "--runner of engine_args"),
    ],
)
def test_anything_untested_serves_without_and_says_why(
    tmp_path: Path, versions: tuple[str, ...], fields: dict[str, object], words: str
) -> None:
    started = launch_with(an_environment(tmp_path, *versions), **fields)
    assert "--scheduler-cls" not in started.argv
    assert (started.batch_headers, started.slots_file) == ({}, None)
    assert words in started.note


@pytest.mark.parametrize("engine", list(EngineKind))
def test_it_can_be_turned_off(engine: EngineKind) -> None:
    off = engines(vllm=("vllm",), allow_downloads=False, shutdown_timeout_s=1, preempts=False)[
        engine
    ]
    started = off.launch(a_model("m"), host="h", port=1, key="k", scratch_dir="/s")
    assert (started.batch_headers, started.slots_file) == ({}, None)
    assert started.note == "chat takes no slots from batch: [engine] plugin is off"


def test_a_command_of_a_container_cannot_be_asked() -> None:
    assert "cannot be told" in launch_with(("/bin/sh", "exec", "image.sif", "vllm")).note


def test_several_nodes_are_refused() -> None:
    with pytest.raises(ConfigError, match="model m: nodes = 2"):
        launch(nodes=2)


def test_all_sides_agree_on_the_name_of_the_key() -> None:
    guard = (vllm_launch.PLUGINS / "hpcserve_guard.py").read_text()
    assert f'KEY_VARIABLE = "{vllm_launch.KEY_VARIABLE}"' in guard
    assert vllm_launch.KEY_VARIABLE == settings.KEY_VARIABLE

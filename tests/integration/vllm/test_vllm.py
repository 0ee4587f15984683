"""Real vLLM keeps the engine contract: the same suite that the fake engine passes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hpcserve.domain.model import Model
from hpcserve.engines.failure import explain_failure
from hpcserve.engines.process import EngineProcesses
from hpcserve.engines.vllm.launch import KEY_VARIABLE, VllmAdapter
from hpcserve.ports.engine import Launch
from tests.builders import a_model
from tests.contract.engine.running import KEY, RunningEngine, running_engine
from tests.contract.engine.suite import CHAT, EngineContract
from tests.integration.vllm.engine_paths import SMOLLM2_WEIGHTS, VLLM

ADAPTER = VllmAdapter(command=(str(VLLM),), allow_downloads=False, shutdown_timeout_s=20)
START_S = 200.0

# In float32: only there does a request that goes on from token ids equal an undisturbed one. No
# tiny model: on a machine with two cores its answers are over before anyone has looked.
SMOLLM2 = a_model(
    "smollm2",
    weights=str(SMOLLM2_WEIGHTS),
    gpus_per_node=0,
    max_model_len=2048,
    max_num_seqs=4,
    kv_cache_mib=512,
    dtype="float32",
    engine_args=("--enforce-eager",),
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningEngine]:
    folder = tmp_path_factory.mktemp("vllm")
    async with running_engine(ADAPTER, SMOLLM2, folder, within_s=START_S) as engine:
        yield engine


@pytest.mark.asyncio(loop_scope="module")
class TestBeforeTheSuite:
    """What only vLLM has; the suite's last test ends the engine."""

    async def test_a_real_question_gets_a_real_answer(self, engine: RunningEngine) -> None:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        answer = await engine.complete(CHAT, messages=question, max_tokens=24, temperature=0)
        assert "Paris" in answer["choices"][0]["message"]["content"]

    async def test_a_websocket_needs_the_key(self, engine: RunningEngine) -> None:
        for path in ("/v1/realtime", "/"):
            upgrade = {
                "connection": "Upgrade",
                "upgrade": "websocket",
                "sec-websocket-version": "13",
                "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
                "authorization": "Bearer wrong",
            }
            response = await engine.client.get(path, headers=upgrade)
            assert response.status_code in {401, 403}

    async def test_the_key_is_in_no_argument(self, engine: RunningEngine) -> None:
        assert KEY not in " ".join(_arguments(engine.process.pid))

    async def test_caches_stay_in_the_scratch_folder(
        self, engine: RunningEngine, tmp_path: Path
    ) -> None:
        environment = _environment(engine.process.pid)
        for name in ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "HF_HOME", "TRITON_CACHE_DIR"):
            assert environment[name].startswith(str(tmp_path.parent))
        assert environment[KEY_VARIABLE] == KEY


class TestVllm(EngineContract):
    """The suite on real vLLM."""


async def test_weights_that_do_not_exist_are_named(tmp_path: Path) -> None:
    model = a_model("absent", weights=str(tmp_path / "absent"))
    cause = await _cause_of_failure(model_launch(model, tmp_path, port=1), tmp_path)
    assert str(tmp_path / "absent") in cause
    assert "`weights`" in cause


def model_launch(model: Model, folder: Path, *, port: int) -> Launch:
    return ADAPTER.launch(model, host="127.0.0.1", port=port, key=KEY, scratch_dir=str(folder))


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        launch = model_launch(SMOLLM2, tmp_path, port=other.getsockname()[1])
        assert "Address already in use" in await _cause_of_failure(launch, tmp_path)


async def _cause_of_failure(launch: Launch, folder: Path) -> str:
    log = folder / "engine.log"
    process = await EngineProcesses(os.environ).start(launch, log_path=str(log))
    try:
        assert await asyncio.wait_for(process.wait(), START_S) != 0
    finally:
        process.kill()
    return explain_failure(log.read_text())


def _environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _arguments(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")

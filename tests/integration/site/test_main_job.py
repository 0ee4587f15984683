"""The main job on real parts: a real Slurm, a real vLLM, a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.integration.running_site import (
    RunningSite,
    assert_exactly_once,
    chat_line,
    running_site,
)
from tests.integration.slurm_cluster import SlurmCluster
from tests.integration.vllm.engine_paths import SMOLLM2_WEIGHTS, VLLM

pytestmark = pytest.mark.timeout(280)

#: vLLM on CPU: a fixed cache, no compilation
ON_CPU = {
    "gpus_per_node": 1,
    "cpus_per_node": 2,
    "memory_gib_per_node": 4,
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "kv_cache_mib": 256,
    "engine_args": ["--enforce-eager"],
    "time_limit_s": 1800,
}
MODELS = {
    "smollm2": {**ON_CPU, "weights": str(SMOLLM2_WEIGHTS), "min_instances": 1},
    "absent": {**ON_CPU, "weights": "/nowhere/absent"},
}
SETTINGS = {
    "engine": {"vllm": str(VLLM)},
    # an engine that loads on a small machine leaves the agent little of it
    "controller": {"silence_s": 30.0, "failures_max": 2, "backoff_first_s": 0.5},
    "agent": {"term_s": 1.2, "stop_s": 5.0},
}
READY_S = 200.0
CITIES = ["France", "Italy", "Spain", "Japan", "Norway", "Egypt", "Peru", "Kenya"]


@pytest.fixture(scope="module")
def site(slurm_cluster: SlurmCluster) -> Iterator[RunningSite]:
    """A site that serves SmolLM2 by real vLLM in a real Slurm job."""
    with running_site(slurm_cluster, MODELS, SETTINGS) as site:
        site.wait_ready(timeout_s=READY_S)
        yield site


def test_a_batch_through_the_command_line(site: RunningSite) -> None:
    lines = [
        chat_line(land, "smollm2", f"What is the capital of {land}?", 16, temperature=0)
        for land in CITIES
    ]
    batch = site.submit(lines)
    assert f"{batch} is completed: 8 done, 0 failed, 8 in all" in site.cli("batch", "wait", batch)
    output = site.folder / "out.jsonl"
    site.cli("batch", "results", batch, "-o", str(output))
    results = [json.loads(line) for line in output.read_text().splitlines()]
    # in the order of the input
    assert [result["custom_id"] for result in results] == CITIES
    assert_exactly_once(results, CITIES)
    answer = results[0]["response"]["body"]["choices"][0]["message"]["content"]
    assert "Paris" in answer
    assert site.json("batch", "status", batch)["batch"]["status"] == "completed"
    assert batch in site.cli("batch", "list")


def test_a_streamed_chat_through_the_openai_client(site: RunningSite) -> None:
    client = openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.key)
    assert "smollm2" in [model.id for model in client.models.list()]
    stream = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=24,
        temperature=0,
        stream=True,
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(pieces) > 5
    assert "Paris" in "".join(pieces)


def test_status_and_explain_say_what_runs_and_why(site: RunningSite) -> None:
    (instance,) = site.json("status")["instances"]
    assert instance["job_id"] in site.jobs()
    assert instance["left_s"] > 0
    said = site.cli("status")
    for part in (instance["id"], instance["job_id"], "ready", "the catalog keeps 1"):
        assert part in said
    story = site.json("explain", instance["id"])["story"]
    events = [line["event"] for line in story]
    assert events[0] == "requested"
    assert {"submitted", "registered", "healthy"} <= set(events)
    assert all(line["reason"] for line in story)
    assert "the engine answers and generates" in site.cli("explain", instance["id"])


def test_no_route_of_a_real_engine_answers_a_wrong_token(site: RunningSite) -> None:
    (instance,) = site.instances("ready")
    listening = {
        connection.laddr
        for connection in site.engine(instance["id"]).net_connections()
        if connection.status == "LISTEN" and connection.laddr.ip == "127.0.0.1"
    }
    right = {"authorization": f"Bearer {site.engine_key(instance['id'])}"}
    (url,) = [
        url
        for at in listening
        if httpx.get(url := f"http://{at.ip}:{at.port}/openapi.json", headers=right).is_success
    ]
    routes = httpx.get(url, headers=right).json()["paths"]
    assert {"/v1/chat/completions", "/health", "/invocations"} <= set(routes)
    for path, methods in routes.items():
        for method in methods:
            address = url.replace("/openapi.json", path)
            answer = httpx.request(method, address, headers={"authorization": "Bearer wrong"})
            assert (path, answer.status_code) == (path, 401)


def test_weights_that_do_not_exist_are_given_up_with_the_logs_last_lines(
    site: RunningSite,
) -> None:
    batch = site.submit([chat_line("a", "absent")], "absent")

    def given_up() -> bool:
        return any(model.get("given_up") for model in site.status()["models"])

    def ended() -> list[dict[str, Any]]:
        return [i for i in site.status()["ended"] if i["model"] == "absent"]

    site.wait("absent is given up", given_up, READY_S)
    # the model is given up while its last instance is still on its way out
    site.wait("both tries have ended", lambda: len(ended()) == 2, 20)
    failed = ended()
    said = site.cli("status")
    assert [i["end_reason"] for i in failed] == ["load_failed", "load_failed"]
    for part in ("GIVEN UP", failed[0]["log_path"], "/nowhere/absent", "admin model retry absent"):
        assert part in said
    assert Path(failed[0]["log_path"]).read_text().splitlines()[-1] in said
    site.cli("batch", "cancel", batch)
    assert site.cli("admin", "model", "retry", "absent") == "absent may be tried again."
    site.wait("it is forgiven", lambda: not given_up(), 10)


def test_a_killed_engine_is_replaced(site: RunningSite) -> None:
    (first,) = site.instances("ready")
    site.engine(first["id"]).kill()
    gone = site.wait_ended(first["id"])
    assert gone["end_reason"] == "crashed"
    assert gone["log_path"] in gone["message"]
    site.wait("its replacement", lambda: site.instances(model="smollm2"), 20)
    assert site.instances(model="smollm2")[0]["job_id"] != first["job_id"]

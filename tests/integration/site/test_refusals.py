"""What a site refuses, and how it says so: keys, models, prompt files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.integration.running_site import FAKE, RunningSite, chat_line, running_site
from tests.integration.slurm_cluster import SlurmCluster

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def site(slurm_cluster: SlurmCluster) -> Iterator[RunningSite]:
    """A site with one warm fake engine."""
    with running_site(slurm_cluster, {"m": {**FAKE, "min_instances": 1}}) as site:
        site.wait_ready()
        yield site


def test_no_route_of_an_engine_answers_a_wrong_token(site: RunningSite) -> None:
    (instance,) = site.instances("ready")
    (at,) = [c for c in site.engine(instance["id"]).net_connections() if c.status == "LISTEN"]
    url = f"http://{at.laddr.ip}:{at.laddr.port}"
    assert at.laddr.ip == "127.0.0.1"
    right = {"authorization": f"Bearer {site.engine_key(instance['id'])}"}
    assert httpx.get(f"{url}/health", headers=right).status_code == 200
    for method, path in (
        ("GET", "/health"),
        ("GET", "/metrics"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
        ("POST", "/fake/faults"),
        ("GET", "/no/such/route"),
    ):
        for headers in ({}, {"authorization": "Bearer wrong"}):
            assert httpx.request(method, url + path, headers=headers).status_code == 401


def test_a_wrong_api_key_is_401_in_openais_envelope(site: RunningSite) -> None:
    client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="sk-wrong", max_retries=0)
    for ask in (
        client.models.list,
        client.batches.list,
        lambda: client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "hello"}]
        ),
    ):
        with pytest.raises(openai.AuthenticationError) as refused:
            ask()
        assert refused.value.code == "invalid_api_key"
        assert set(refused.value.body) >= {"message", "type", "param", "code"}  # type: ignore[call-overload]  # an object, says the client


def test_an_unknown_model_is_404_that_lists_the_known_ones(site: RunningSite) -> None:
    client = openai.OpenAI(base_url=f"{site.url}/v1", api_key=site.key, max_retries=0)
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(
            model="gpt-0", messages=[{"role": "user", "content": "hello"}]
        )
    assert refused.value.code == "model_not_found"
    assert "gpt-0" in refused.value.message
    assert "m" in refused.value.message.partition("gpt-0")[2]


GOOD = json.dumps(chat_line("a", "m")).encode()
BAD_FILES = {
    "invalid JSON": (GOOD + b'\n{"custom_id": \n', 2, "JSON"),
    "duplicate custom_id": (GOOD + b"\n" + GOOD + b"\n", 2, "'a'"),
    "missing body": (
        b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}',
        1,
        "body",
    ),
    "not UTF-8": (GOOD + b"\n" + GOOD.replace(b"hello", b"h\xe9llo"), 2, "UTF-8"),
    "empty file": (b"", None, "empty"),
}


@pytest.mark.parametrize("mistake", BAD_FILES)
def test_a_bad_prompt_file_is_one_clear_error(
    site: RunningSite, tmp_path: Path, mistake: str
) -> None:
    text, line, word = BAD_FILES[mistake]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(text)
    said = site.cli("batch", "submit", str(path), "--wait", code=1)
    errors = [part for part in said.splitlines() if word in part]
    assert len(errors) == 1, said
    if line is not None:
        assert f"line {line}" in errors[0]
    assert "Traceback" not in said
    for batch in site.json("batch", "list")["data"]:
        assert batch["status"] == "failed"
        assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}


def test_a_file_that_is_not_there_is_named(site: RunningSite) -> None:
    said = site.cli("batch", "submit", "/nowhere/prompts.jsonl", code=1)
    assert "/nowhere/prompts.jsonl" in said
    assert len(said.splitlines()) == 1

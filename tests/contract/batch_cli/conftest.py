"""One site for all of these tests: `hpcserve up` on local processes, a fake engine, no Slurm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.running_site import FAKE, HPCSERVE, RunningSite, running_site

MODEL = {
    **FAKE,
    "gpus_per_node": 0,
    "min_instances": 1,
    "engine_args": ["--ttft-ms", "5", "--itl-ms", "1"],
}


class Shell:
    """What a user types, with its three outcomes: code, output, errors."""

    def __init__(self, site: RunningSite, folder: Path) -> None:
        self.site = site
        self.folder = folder

    def __call__(
        self, *arguments: str, code: int = 0, data: bytes | None = None, **env: str
    ) -> tuple[str, str]:
        """Type `hpcserve batch ...` in the folder; return output and errors."""
        done = subprocess.run(
            [str(HPCSERVE), "batch", *arguments],
            env=self.site.env | env,
            cwd=self.folder,
            input=data if data is not None else b"",
            capture_output=True,
            timeout=60,
            check=False,
        )
        output, errors = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == code, f"{arguments}\n{output}{errors}"
        return output, errors

    def batches(self) -> list[str]:
        """Return the ids of all batches."""
        with self.site.client() as client:
            found = client.get("/v1/batches?limit=100").raise_for_status().json()["data"]
        return [batch["id"] for batch in found]

    def write(self, name: str, data: str | bytes) -> str:
        content = data.encode() if isinstance(data, str) else data
        (self.folder / name).write_bytes(content)
        return name

    def bodies(self, batch_id: str) -> dict[str, dict[str, object]]:
        """Return what was asked, by custom_id, out of the input file."""
        batch = self.site.batch(batch_id)
        with self.site.client() as client:
            found = client.get(f"/v1/files/{batch['input_file_id']}/content").raise_for_status()
        lines = [json.loads(line) for line in found.text.splitlines()]
        return {line["custom_id"]: line["body"] for line in lines}


@pytest.fixture(scope="module")
def site() -> Iterator[RunningSite]:
    ended = 'echo "$HPCSERVE_BATCH_STATUS $HPCSERVE_BATCH_COMPLETED" > ended.$HPCSERVE_BATCH_ID'
    settings: dict[str, dict[str, object]] = {
        "slurm": {"backend": "local"},
        "batching": {
            "estimate_s": 0.2,
            "on_end": ["sh", "-c", f'cd "$(dirname "$HPCSERVE_CONFIG")" && {ended}'],
        },
    }
    with running_site(None, {"m": MODEL}, settings) as site:
        site.wait_ready()
        yield site


@pytest.fixture
def hpcserve(site: RunningSite, tmp_path: Path) -> Shell:
    return Shell(site, tmp_path)

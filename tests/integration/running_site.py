"""A whole site for one test: `hpcserve up` as a real process, on Slurm or on local processes.

Rules: everything listens on loopback; all timers are short, so that seconds show what takes minutes
on a cluster; its jobs carry the site's own name, and at the end they and every process that lives
in its folder are ended, by id. Reading the status goes over the Unix socket without a new process
each time; what a user types goes through the real command line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from hpcserve.domain.credentials import engine_key
from tests.integration.slurm_cluster import SlurmCluster

#: the console script beside the interpreter that runs the tests
HPCSERVE = Path(sys.executable).parent / "hpcserve"
START_S = 30.0
POLL_S = 0.1
#: OpenAI's words for a batch on its way
BUSY = ("validating", "in_progress", "finalizing")

Settings = Mapping[str, Mapping[str, object]]

#: seconds where a real site has minutes; the dev cluster kills 2 s after SIGTERM
FAST: Settings = {
    "slurm": {"backend": "cli", "notice_s": 20, "command_timeout_s": 15.0},
    "controller": {
        "tick_s": 0.5,
        "tick_min_s": 0.2,
        "leader_ttl_s": 3.0,
        "silence_s": 4.0,
        "intent_grace_s": 5.0,
        "vanish_s": 8.0,
        "stop_repeat_s": 5.0,
        "backoff_first_s": 1.0,
    },
    "gateway": {"port": 0, "queue_timeout_s": 40.0, "stop_s": 3.0},
    "agent": {
        "heartbeat_s": 0.5,
        "call_timeout_s": 3.0,
        "drain_s": 15.0,
        "term_s": 1.2,
        "stop_s": 1.0,
        "last_word_s": 1.0,
        "probe_s": 0.2,
        "retry_max_s": 1.0,
        "lease_poll_s": 0.2,
        "settle_s": 0.05,
    },
    "batching": {"lease_ttl_s": 6.0, "poll_s": 0.2, "retry_pause_s": 1.0, "request_s": 2.0},
    "engine": {"listen_host": "127.0.0.1"},
}

#: a fake engine on one fake GPU
FAKE: Mapping[str, object] = {
    "engine": "fake",
    "weights": "none",
    "gpus_per_node": 1,
    "cpus_per_node": 1,
    "memory_gib_per_node": 1,
    "max_num_seqs": 16,
    "time_limit_s": 3600,
}


class RunningSite:
    """One site: its folder, its configuration, its processes."""

    def __init__(self, folder: Path, cluster: SlurmCluster | None) -> None:
        """Take an empty folder with a short path, and a cluster or None for local processes."""
        self.folder = folder
        self.state = folder / "s"
        self.name = folder.name
        self.cluster = cluster
        self.env = dict(os.environ) if cluster is None else cluster.env
        self.env["HPCSERVE_CONFIG"] = str(folder / "hpcserve.toml")
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._key = ""

    # -- set up

    def configure(self, settings: Settings, models: Mapping[str, Mapping[str, object]]) -> None:
        """Write the configuration, the short timers first, and the catalog."""
        catalog = self.folder / "models.d"
        catalog.mkdir()
        for name, entry in models.items():
            (catalog / f"{name}.toml").write_text(_lines({"name": name, **entry}))
        tree: dict[str, dict[str, object]] = {
            "site": {
                "name": self.name,
                "state_dir": str(self.state),
                "catalog_dirs": [str(catalog)],
            }
        }
        for part in (FAST, settings):
            for section, values in part.items():
                tree.setdefault(section, {}).update(values)
        text = "".join(f"[{section}]\n{_lines(values)}\n" for section, values in tree.items())
        (self.folder / "hpcserve.toml").write_text(text)
        self.cli("admin", "db", "upgrade")

    def start(self, *commands: str) -> None:
        """Start `hpcserve up`, or the commands named, and wait until the status is there."""
        for command in commands or ("up",):
            with (self.folder / f"{command}.log").open("ab") as log:
                self.processes[command] = subprocess.Popen(
                    [str(HPCSERVE), command],
                    env=self.env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        self.wait("the gateway answers", self._answers, START_S)

    def _answers(self) -> bool:
        for command, process in self.processes.items():
            assert process.poll() is None, f"hpcserve {command} ended: {self.log(command)}"
        return self.is_up

    @property
    def is_up(self) -> bool:
        """Whether somebody answers on the Unix socket."""
        with socket.socket(socket.AF_UNIX) as probe:
            # httpx would leave its socket open where nobody listens
            if probe.connect_ex(str(self.socket_path)) != 0:
                return False
        with self.client() as client:
            return client.get("/health").is_success

    def kill(self, command: str = "up", how: signal.Signals = signal.SIGKILL) -> None:
        """End one of the processes as the operating system would."""
        process = self.processes.pop(command)
        process.send_signal(how)
        process.wait(30)

    def log(self, command: str = "up") -> str:
        """Read the end of a process's log."""
        return (self.folder / f"{command}.log").read_text()[-4000:]

    def wrap(self, command: str, script: str) -> None:
        """Put a script in front of one of Slurm's commands; it finds the real one in $REAL."""
        real = shutil.which(command)
        assert real is not None, f"{command} is not installed"
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        (folder / command).write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
        (folder / command).chmod(0o755)
        if not self.env["PATH"].startswith(f"{folder}:"):
            self.env["PATH"] = f"{folder}:{self.env['PATH']}"

    # -- what a user does

    def cli(self, *arguments: str, code: int = 0) -> str:
        """Type a command; return what it prints, with its errors when it is to fail."""
        done = subprocess.run(
            [str(HPCSERVE), *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        shown = f"hpcserve {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        assert done.returncode == code, shown
        return (done.stdout if code == 0 else done.stdout + done.stderr).strip()

    def json(self, *arguments: str) -> Any:
        """Type a command with `--json` and parse its answer."""
        return json.loads(self.cli(*arguments, "--json"))

    def submit(self, lines: Iterable[Mapping[str, object]], name: str = "batch") -> str:
        """Submit a prompt file through the command line; return the batch's id."""
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return self.cli("batch", "submit", str(path), "--within", "1h")

    def results(self, batch_id: str) -> list[dict[str, Any]]:
        """Fetch what is finished of a batch."""
        return [json.loads(line) for line in self.cli("batch", "results", batch_id).splitlines()]

    # -- looking

    @property
    def socket_path(self) -> Path:
        """The gateway's Unix socket."""
        return self.state / "run" / "gateway.sock"

    def client(self) -> httpx.Client:
        """Talk over the Unix socket, as the command line does."""
        transport = httpx.HTTPTransport(uds=str(self.socket_path))
        return httpx.Client(base_url="http://hpcserve", transport=transport, timeout=10)

    def status(self) -> dict[str, Any]:
        """Return what `hpcserve status --json` prints."""
        return self._get("/hpcserve/v1/status")

    def batch(self, batch_id: str) -> dict[str, Any]:
        """Return OpenAI's batch object."""
        return self._get(f"/v1/batches/{batch_id}")

    def story(self, subject_id: str) -> list[dict[str, Any]]:
        """Return the events of one id."""
        lines: list[dict[str, Any]] = self._get(f"/hpcserve/v1/explain/{subject_id}")["story"]
        return lines

    def _get(self, path: str) -> dict[str, Any]:
        with self.client() as client:
            answer: dict[str, Any] = client.get(path).raise_for_status().json()
        return answer

    def instances(self, state: str = "", model: str = "") -> list[dict[str, Any]]:
        """Return the live instances, those of one state or model only when it is named."""
        return [
            instance
            for instance in self.status()["instances"]
            if state in ("", instance["state"]) and model in ("", instance["model"])
        ]

    def ended(self, instance_id: str) -> dict[str, Any] | None:
        """Return an instance once it has ended."""
        return next((i for i in self.status()["ended"] if i["id"] == instance_id), None)

    # -- waiting

    def wait(self, what: str, condition: Callable[[], object], timeout_s: float) -> None:
        """Wait until a condition holds; say what the site is at when it does not."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s: {what}\n{self._evidence()}")
            time.sleep(POLL_S)

    def _evidence(self) -> str:
        seen = json.dumps(self.status(), indent=1) if self.is_up else "no gateway answers"
        logs = "".join(f"\n-- {command}\n{self.log(command)}" for command in self.processes)
        return seen + logs

    def wait_ready(self, count: int = 1, timeout_s: float = 40.0) -> list[dict[str, Any]]:
        """Wait until so many instances serve; return them."""
        self.wait(f"{count} ready", lambda: len(self.instances("ready")) >= count, timeout_s)
        return self.instances("ready")

    def wait_ended(self, instance_id: str, timeout_s: float = 40.0) -> dict[str, Any]:
        """Wait until an instance has ended; return it."""
        self.wait(f"{instance_id} ended", lambda: self.ended(instance_id), timeout_s)
        found = self.ended(instance_id)
        assert found is not None
        return found

    def wait_completed(self, batch_id: str, timeout_s: float = 90.0) -> dict[str, Any]:
        """Wait until a batch is completed; return it."""
        self.wait(
            f"{batch_id} completed",
            lambda: self.batch(batch_id)["status"] not in BUSY,
            timeout_s,
        )
        batch = self.batch(batch_id)
        assert batch["status"] == "completed", self._evidence()
        return batch

    def wait_under_way(self, batch_id: str, done: int = 1) -> None:
        """Wait until so many lines of a batch are done, and not all."""
        self.wait(
            f"{done} lines of {batch_id}",
            lambda: self.batch(batch_id)["request_counts"]["completed"] >= done,
            60,
        )
        assert self.batch(batch_id)["status"] == "in_progress"

    # -- interactive

    @property
    def url(self) -> str:
        """Where the gateway listens."""
        found = sorted((self.state / "gateways").glob("*.json"), key=lambda p: p.stat().st_mtime)
        return str(json.loads(found[-1].read_text())["url"])

    @property
    def key(self) -> str:
        """An API key, made at the first use."""
        if not self._key:
            self._key = self.cli("keys", "create", "--name", "test")
        return self._key

    def chat(self, model: str, text: str = "hello", **body: object) -> httpx.Response:
        """Ask once over HTTP with the key."""
        return httpx.post(
            f"{self.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {self.key}"},
            json={"model": model, "messages": [{"role": "user", "content": text}], **body},
            timeout=60,
            trust_env=False,
        )

    def stream(self, model: str, **body: object) -> Iterator[str]:
        """Ask for a stream; yield its events as they come."""
        request = {"model": model, "messages": [{"role": "user", "content": "hi"}], **body}
        with httpx.stream(
            "POST",
            f"{self.url}/v1/chat/completions",
            headers={"authorization": f"Bearer {self.key}"},
            json={**request, "stream": True},
            timeout=60,
            trust_env=False,
        ) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: "):
                    yield line.removeprefix("data: ")

    # -- behind the scenes

    def engine_key(self, instance_id: str) -> str:
        """Return the key that one engine asks for."""
        return engine_key((self.state / "secret").read_bytes(), instance_id)

    def jobs(self) -> dict[str, str]:
        """Ask Slurm for this site's jobs that are not over: state by id."""
        assert self.cluster is not None
        shown = self.cluster.run("squeue", "-h", "-t", "PD,R,CG,CF", "-o", "%i|%T|%k")
        rows = [line.split("|") for line in shown.splitlines()]
        return {row[0]: row[1] for row in rows if f":{self.name}:" in row[2]}

    def pids(self, what: str, instance_id: str = "") -> list[int]:
        """Return the processes of this site with these words in their command or environment."""
        found = []
        for process in psutil.process_iter():
            try:
                said = " ".join(process.cmdline())
                folder = process.environ().get("HPCSERVE_CONFIG", "") + said
            except psutil.Error:
                continue
            if what in said and str(self.folder) in folder and instance_id in said:
                found.append(process.pid)
        return found

    def agent(self, instance_id: str) -> psutil.Process:
        """Return the process of an instance's agent."""
        (pid,) = self.pids("submitit.core._submit", instance_id)
        return psutil.Process(pid)

    def engine(self, instance_id: str) -> psutil.Process:
        """Return the engine below an instance's agent."""
        below = self.agent(instance_id).children(recursive=True)
        return next(p for p in below if {"hpcserve.engines.fake", "serve"} & set(p.cmdline()))

    # -- the end

    def close(self) -> None:
        """End the jobs, then the processes, by id."""
        for command in list(self.processes):
            self.kill(command)
        if self.cluster is not None and (jobs := self.jobs()):
            self.cluster.run("scancel", "--signal=KILL", "--full", *jobs)
            self.cluster.run("scancel", *jobs)
        for pid in self.pids(""):
            if pid != os.getpid():
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()
        if self.cluster is not None:
            self.wait("the jobs end", lambda: not self.jobs(), 40)


@contextmanager
def running_site(
    cluster: SlurmCluster | None,
    models: Mapping[str, Mapping[str, object]],
    settings: Settings | None = None,
    *,
    commands: Iterable[str] = ("up",),
) -> Iterator[RunningSite]:
    """Run a site in a folder of its own, and leave nothing of it."""
    folder = Path(tempfile.mkdtemp(prefix="hs.", dir="/tmp"))
    site = RunningSite(folder, cluster)
    try:
        site.configure(settings or {}, models)
        if commands:
            site.start(*commands)
        yield site
    finally:
        site.close()
        # Slurm may close a job's log a moment later
        shutil.rmtree(folder, ignore_errors=True)


class SqueueWatch:
    """Asks squeue all the while, and remembers every job of the site that it ever showed."""

    def __init__(self, site: RunningSite) -> None:
        """Take whose jobs to watch."""
        self._site = site
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.seen: set[str] = set()
        self.looks = 0

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            self.seen |= self._site.jobs().keys()
            self.looks += 1

    def __enter__(self) -> Self:
        """Begin."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        self._stop.set()
        self._thread.join(60)


def _lines(values: Mapping[str, object]) -> str:
    """Write TOML; JSON's texts, numbers, truths and lists are TOML's."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def chat_line(
    custom_id: str, model: str, text: str = "hello", max_tokens: int = 4, **body: object
) -> dict[str, object]:
    """Return one line of a prompt file."""
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            **body,
        },
    }


def assert_exactly_once(results: list[dict[str, Any]], wanted: Iterable[str]) -> None:
    """Every custom_id has one answer, and there is no other."""
    found, asked = Counter(result["custom_id"] for result in results), set(wanted)
    twice = {one for one, count in found.items() if count > 1}
    assert (asked - set(found), set(found) - asked, twice) == (set(), set(), set())
    assert all(result["error"] is None for result in results)

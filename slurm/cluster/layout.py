"""Where a dev cluster keeps its files, and the facts that describe one.

Rules: everything of a cluster lies under its directory; the directory's path is short, because the
daemons talk over Unix sockets in it (108 bytes); a directory of somebody else is never touched.
"""

import json
import os
import pwd
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

MAX_PATH_CHARS = 60
"""Longest directory: slurmstepd's socket names under it need the rest of 108 bytes."""


class DevClusterError(Exception):
    """Say in one sentence what is wrong and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a cluster was started with; kept beside it as JSON."""

    dir: str
    slurm_conf: str
    version: str
    address: str
    loopback_only: bool
    controller_port: int
    node_ports: tuple[int, ...]
    dbd_port: int | None
    gpus_per_node: int

    cluster: str = "dev"
    account: str = "hpc"
    capped_qos: str = "capped"

    @property
    def accounting(self) -> bool:
        """Tell whether slurmdbd records jobs and enforces limits."""
        return self.dbd_port is not None

    @property
    def old(self) -> bool:
        """Tell whether this Slurm still uses the spellings of 22.05."""
        return tuple(int(part) for part in self.version.split(".")[:2]) < (23, 0)

    @property
    def nodes(self) -> list[str]:
        """Name the nodes: gpu01, gpu02, ..."""
        return [f"gpu{number:02d}" for number in range(1, len(self.node_ports) + 1)]


@dataclass(frozen=True, slots=True)
class Layout:
    """Every path of the cluster in `root`."""

    root: Path

    @property
    def slurm_conf(self) -> Path:
        """The one file that a client needs."""
        return self.root / "etc/slurm.conf"

    @property
    def facts_file(self) -> Path:
        """The facts; its presence marks the directory as ours."""
        return self.root / "devcluster.json"

    @property
    def lock(self) -> Path:
        """Held by `up` and `down`."""
        return self.root / "lock"

    @property
    def munge_socket(self) -> Path:
        """Where the cluster's own munged listens."""
        return self.root / "munge/munge.sock"

    @property
    def database_socket(self) -> Path:
        """Where the private MariaDB listens; it has no network port."""
        return self.root / "db/mysql.sock"

    def pid_file(self, daemon: str) -> Path:
        """Locate the pid file of a daemon, for example `slurmctld` or `slurmd.gpu01`."""
        return self.root / f"run/{daemon}.pid"

    def log(self, daemon: str) -> Path:
        """Locate the log of a daemon."""
        return self.root / f"log/{daemon}.log"

    def claim(self) -> None:
        """Make the directory, or see that it may be used.

        Raises:
            DevClusterError: It holds something else, belongs to another user or cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DevClusterError(
                f"{self.root} cannot be made ({error.strerror}): name another --dir"
            ) from error
        if self.root.stat().st_uid != os.getuid():
            raise DevClusterError(f"{self.root} belongs to another user: name your own --dir")
        if not self.facts_file.exists() and set(self.root.iterdir()) - {self.lock}:
            raise DevClusterError(
                f"{self.root} holds something that is no dev cluster: name an empty --dir"
            )

    def renew(self) -> None:
        """Make an empty tree, in place of what an earlier cluster left."""
        for entry in set(self.root.iterdir()) - {self.lock, self.facts_file}:
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        for name in ("etc", "log", "run", "munge", "state", "dev", "db"):
            (self.root / name).mkdir()
        self.root.chmod(0o755)

    def save(self, facts: Facts) -> None:
        """Write the facts down."""
        self.facts_file.write_text(json.dumps(asdict(facts), indent=2) + "\n")

    def load(self) -> Facts | None:
        """Read the facts; None where there are none, or none that this release wrote."""
        try:
            record = json.loads(self.facts_file.read_text())
            return Facts(**{**record, "node_ports": tuple(record["node_ports"])})
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def default_dir() -> Path:
    """Choose the calling user's own directory, the same one each time."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and Path(runtime).stat().st_uid == os.getuid():
        return Path(runtime) / "hpcserve/dev"
    return Path(f"/tmp/hpcserve-{user_name()}/dev")


def user_name() -> str:
    """Name the calling user as Slurm knows it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError as error:
        raise DevClusterError(
            f"user id {os.getuid()} has no name, which Slurm needs: add it to /etc/passwd"
        ) from error


def layout_of(directory: str | None) -> Layout:
    """Check the path of a cluster's directory.

    Raises:
        DevClusterError: The path is too long or has characters that Slurm's files cannot hold.
    """
    root = Path(os.path.realpath(directory)) if directory else default_dir()
    if len(str(root)) > MAX_PATH_CHARS:
        raise DevClusterError(
            f"{root} is longer than the {MAX_PATH_CHARS} characters that Unix sockets leave: "
            "name a shorter --dir"
        )
    if not re.fullmatch(r"[A-Za-z0-9._/-]+", str(root)):
        raise DevClusterError(f"{root} may hold only letters, digits and . _ / - : rename --dir")
    return Layout(root)

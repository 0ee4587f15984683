"""The pinned versions: complete, hashed, and free of addresses."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "etc").glob("constraints*.txt"))
PIN = re.compile(
    r"^([A-Za-z0-9._-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.MULTILINE
)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_line_is_a_hashed_pin(path: Path) -> None:
    rest = PIN.sub("", path.read_text())
    assert [line for line in rest.splitlines() if line and not line.startswith("#")] == []
    assert "://" not in rest


def test_the_pins_satisfy_what_pyproject_asks_for() -> None:
    pins = {canonicalize_name(m[1]): m[2] for m in PIN.finditer(_read("etc/constraints.txt"))}
    project = tomllib.loads(_read("pyproject.toml"))
    groups = project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *groups["lint"], *groups["test"]]
    for requirement in map(Requirement, wanted):
        pinned = pins.get(canonicalize_name(requirement.name))
        assert pinned, f"{requirement.name} is not pinned; run slurm/setup lock python"
        assert requirement.specifier.contains(pinned), f"{requirement} against {pinned}"


def _read(name: str) -> str:
    return (ROOT / name).read_text()

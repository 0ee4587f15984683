"""The README's commands and links exist, and its promises about the command line hold."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def hpcserve(*argv):
    """Run a command of the command line and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "hpcserve", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_linked_file_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def commands():
    """Return the distinct hpcserve commands that the README shows, without their arguments."""
    shown = "\n".join(re.findall(r"```(.*?)```", README, flags=re.DOTALL))
    found = re.findall(r"^\s*hpcserve ([a-z]+(?: [a-z]+)*)", shown, flags=re.MULTILINE)
    return sorted({" ".join(line.split()[:3]) for line in found})


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_exists(command):
    assert "Usage" in hpcserve(*command.split(), "--help")


def test_help_answers_at_once():
    # processor time, which a busy machine does not stretch; on an idle one it is the time taken
    def spent_s():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent_s()
    for _ in range(5):
        hpcserve("--help")
    assert (spent_s() - before) / 5 < 0.3


def test_help_imports_nothing_heavy():
    code = "import sys, hpcserve.cli.app; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"sqlalchemy", "fastapi", "httpx", "aiohttp", "submitit", "pydantic", "numpy", "vllm"}
    assert heavy & set(loaded) == set()

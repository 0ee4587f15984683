"""The code map speaks of the code that there is."""

import re
from pathlib import Path

import pytest

from hpcserve.domain.batch import BATCH, BATCH_REQUEST
from hpcserve.domain.instance import INSTANCE

PACKAGE = Path(__file__).parents[2] / "hpcserve"
MAP = (PACKAGE / "README.md").read_text()


@pytest.mark.parametrize("table", [INSTANCE, BATCH, BATCH_REQUEST], ids=lambda t: t.noun)
def test_the_life_cycles_are_the_tables(table):
    assert table.markdown() in MAP


def test_every_path_that_it_names_exists():
    named = {
        name
        for name in re.findall(r"`([\w./]+(?:\.py|/))`", MAP)
        if "<" not in name and name != "registry.py"
    }
    assert len(named) > 30
    roots = [PACKAGE, PACKAGE / "batching", PACKAGE.parent]
    assert sorted(n for n in named if not any((root / n).exists() for root in roots)) == []


def test_every_package_is_on_it():
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(name for name in packages if f"`{name}/`" not in MAP) == []

"""The shipped configuration file is the tree, written out."""

import tomllib
from dataclasses import fields
from pathlib import Path

from hpcserve.config import Config, load_config

FILE = Path(__file__).parents[2] / "etc" / "hpcserve.toml"


def test_the_shipped_file_equals_the_defaults():
    assert load_config(file=FILE, env={}) == Config()


def test_the_shipped_file_names_every_setting():
    written = tomllib.loads(FILE.read_text())
    tree = {
        section.name: [key.name for key in fields(getattr(Config(), section.name))]
        for section in fields(Config)
    }
    assert {name: list(section) for name, section in written.items()} == tree


def test_every_setting_is_explained():
    lines = FILE.read_text().splitlines()
    keyed = [n for n, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert [lines[n] for n in keyed if not lines[n - 1].startswith("#")] == []

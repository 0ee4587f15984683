"""Reads the model catalog: folders of TOML files, one model each."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from hpcserve.config.load import parse
from hpcserve.domain.model import Model
from hpcserve.errors import ConfigError


def load_catalog(folders: Iterable[Path]) -> Mapping[str, Model]:
    """Return the models by name; a folder that does not exist holds none.

    Args:
        folders: a later folder's model replaces an earlier one's of the same name.

    Raises:
        ConfigError: a file is not valid, or one folder names a model twice.

    """
    models: dict[str, Model] = {}
    for folder in folders:
        here: dict[str, Model] = {}
        for path in sorted(folder.glob("*.toml")):
            model = read_model(path)
            if model.name in here:
                raise ConfigError(f"{path}: model {model.name!r} stands in this folder already")
            here[model.name] = model
        models.update(here)
    return dict(sorted(models.items()))


def read_model(path: Path) -> Model:
    """Return the model of one file; relative weights lie beside the file."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error
    checked = parse(Model, values, str(path))
    for needed in ("name", "weights"):
        if not checked.get(needed):
            raise ConfigError(f"{path}: {needed} is missing")
    weights = Path(checked["weights"]).expanduser()
    if checked["weights"].startswith(("./", "../", "~")):
        checked["weights"] = str((path.parent / weights).resolve())
    return Model(**checked)

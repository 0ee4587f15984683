"""Reads the configuration: defaults, system file, user file, HPCSERVE_*, flags; later ones win.

A value of the environment is written `HPCSERVE_<SECTION>_<KEY>` (`HPCSERVE_GATEWAY_PORT=9000`);
lists are comma-separated there. An unknown section, key or variable is an error that suggests the
nearest known one; so is a value of the wrong type.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from hpcserve.config.tree import Config
from hpcserve.domain.model import EngineKind
from hpcserve.errors import ConfigError

T = TypeVar("T")

SYSTEM_FILE = Path("/etc/hpcserve/hpcserve.toml")
#: variables of the HPCSERVE_ family that are no settings: where things are found before any setting
RESERVED = frozenset({"HPCSERVE_CONFIG", "HPCSERVE_CACHE", "HPCSERVE_URL", "HPCSERVE_API_KEY"})
_PREFIX = "HPCSERVE_"


def load_config(
    *,
    file: Path | None = None,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, Mapping[str, object]] | None = None,
) -> Config:
    """Return the configuration.

    Args:
        file: read in place of system and user file; so does the variable HPCSERVE_CONFIG.
        env: the environment; the process's own by default.
        flags: values from the command line, by section and key.

    Raises:
        ConfigError: a file cannot be read, or a key or value is unknown or of the wrong type.

    """
    env = os.environ if env is None else env
    config = Config()
    for path in _files(file, env):
        config = _merge(config, _read(path), str(path))
    config = _merge(config, _from_environment(env), "the environment")
    return _merge(config, flags or {}, "the command line")


def _files(file: Path | None, env: Mapping[str, str]) -> Iterable[Path]:
    named = file or (Path(env["HPCSERVE_CONFIG"]) if env.get("HPCSERVE_CONFIG") else None)
    if named is not None:
        return (named,)
    home = env.get("XDG_CONFIG_HOME") or f"{env.get('HOME', '~')}/.config"
    user_file = Path(home).expanduser() / "hpcserve" / "hpcserve.toml"
    return tuple(path for path in (SYSTEM_FILE, user_file) if path.exists())


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error


def _from_environment(env: Mapping[str, str]) -> Mapping[str, Mapping[str, object]]:
    found: dict[str, dict[str, object]] = {}
    for name in sorted(env):
        if not name.startswith(_PREFIX) or name in RESERVED:
            continue
        section, _, key = name.removeprefix(_PREFIX).lower().partition("_")
        found.setdefault(section, {})[key] = env[name]
    return found


def _merge(config: Config, values: Mapping[str, object], source: str) -> Config:
    sections = {f.name: getattr(config, f.name) for f in fields(config)}
    for name, section in values.items():
        if name not in sections:
            raise ConfigError(f"{source}: unknown section [{name}]{nearest(name, sections)}")
        if not isinstance(section, Mapping):
            raise ConfigError(f"{source}: [{name}] must be a section, not a value")
        where = f"{source}: [{name}]"
        sections[name] = replace(sections[name], **parse(type(sections[name]), section, where))
    return Config(**sections)


def parse(kind: type[T], values: Mapping[str, object], where: str) -> dict[str, Any]:
    """Return *values* checked against the fields of the dataclass *kind*.

    Text is taken for numbers and lists too, since the environment knows only text.
    """
    hints = get_type_hints(kind)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, hints)}")
        convert, wanted = _KINDS[hints[key]]
        try:
            checked[key] = convert(value)
        except (TypeError, ValueError, KeyError):
            raise ConfigError(f"{where}: {key} must be {wanted}, not {value!r}") from None
    return checked


_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise TypeError


def _whole(value: object) -> int:
    if isinstance(value, int | str) and not isinstance(value, bool):
        return int(value)
    raise TypeError


def _number(value: object) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        return float(value)
    raise TypeError


def _boolean(value: object) -> bool:
    return value if isinstance(value, bool) else _BOOLEANS[_text(value).lower()]


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list | tuple):
        return tuple(_text(part) for part in value)
    raise TypeError


def _table(value: object) -> Mapping[str, str]:
    if isinstance(value, Mapping):
        return {_text(key): _text(part) for key, part in value.items()}
    raise TypeError


#: for each type of a setting: how a value becomes one, and what to call it in an error
_KINDS: Mapping[object, tuple[Callable[[object], object], str]] = {
    str: (_text, "text"),
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    bool: (_boolean, "true or false"),
    tuple[str, ...]: (_texts, "a list of texts"),
    str | None: (_text, "text"),
    int | None: (_whole, "a whole number"),
    Mapping[str, str]: (_table, "a table of texts"),
    EngineKind: (lambda value: EngineKind(_text(value)), " or ".join(EngineKind)),
}


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` when something like *word* is known, else nothing."""
    match = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {match[0]!r}?" if match else ""

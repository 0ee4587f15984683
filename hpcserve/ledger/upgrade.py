"""Bring a ledger's schema to what this code works with: `hpcserve admin db upgrade`.

The migrations lie in `migrations/` of a checkout and in `hpcserve/_migrations` of an installed
wheel. One transaction holds the whole upgrade: it happens or it does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy.exc import DBAPIError

import hpcserve
from hpcserve.errors import BackendError
from hpcserve.ledger.open import connect, found_revision, parse, refuse_newer, shown
from hpcserve.ledger.tables import REVISIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """What an upgrade found and left; None found means an empty database."""

    found: str | None
    now: str


def upgrade(address: str) -> Upgrade:
    """Upgrade the ledger at *address*, making its SQLite file (mode 0600) when there is none.

    Raises BackendError when the database cannot be reached, its schema is newer than this code,
    or a migration fails; ConfigError when the address is not one of a SQL ledger.
    """
    url = parse(address)
    engine = connect(url, create=True)
    try:
        found = found_revision(url, engine)
        if found is not None:
            refuse_newer(url, found)
        with engine.begin() as connection:
            config = Config()
            config.set_main_option("script_location", str(migrations()).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except DBAPIError as error:
        raise BackendError(
            f"the ledger {shown(url)} cannot be upgraded, nothing was changed:"
            f" {str(error.orig).partition(chr(10))[0].strip()}",
            retryable=False,
        ) from error
    finally:
        engine.dispose()
    return Upgrade(found=found, now=REVISIONS[-1])


def migrations() -> Path:
    """Return the folder of the migrations, installed or in a checkout."""
    package = Path(hpcserve.__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"

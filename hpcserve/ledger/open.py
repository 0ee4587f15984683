"""Opening a SQL ledger: its address, and whether its schema is the one that this code knows."""

from __future__ import annotations

from sqlalchemy import URL, Connection, Engine, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError

from hpcserve.errors import BackendError, ConfigError
from hpcserve.ledger import postgres, sqlite
from hpcserve.ledger.limits import POOL_SIZE
from hpcserve.ledger.sql.ledger import SqlLedger
from hpcserve.ledger.tables import REVISIONS


def open_sql_ledger(address: str) -> SqlLedger:
    """Return the ledger at *address*; raise as `open_ledger` does."""
    url = parse(address)
    engine = connect(url)
    try:
        check_revision(url, found_revision(url, engine))
    except BackendError:
        engine.dispose()
        raise
    if engine.dialect.name == "sqlite":
        # a second writer adds nothing but waiting
        return SqlLedger(engine, sqlite.Sqlite(), threads=1)
    return SqlLedger(engine, postgres.Postgres(), threads=POOL_SIZE)


def parse(address: str) -> URL:
    """Return the parsed address, or raise ConfigError."""
    try:
        url = make_url(address)
    except ArgumentError as error:
        raise ConfigError(_unknown(address)) from error
    if url.drivername == "sqlite":
        return url
    if url.drivername in ("postgresql", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    raise ConfigError(_unknown(url.render_as_string(hide_password=True)))


def connect(url: URL, *, create: bool = False) -> Engine:
    """Return an engine; *create* makes a missing SQLite file."""
    if url.drivername == "sqlite":
        return sqlite.connect(url, create=create)
    return postgres.connect(url)


def found_revision(url: URL, engine: Engine) -> str | None:
    """Return the schema revision of the database, None when it is empty."""
    try:
        with engine.connect() as connection:
            return revision_of(connection)
    except DBAPIError as error:
        raise BackendError(
            f"the ledger {shown(url)} does not answer:"
            f" {str(error.orig).partition(chr(10))[0].strip()}",
            retryable=True,
        ) from error


def revision_of(connection: Connection) -> str | None:
    """Return what Alembic wrote down."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(
        text("SELECT version_num FROM alembic_version")
    ).scalar_one_or_none()
    return revision


def check_revision(url: URL, found: str | None) -> None:
    """Raise BackendError unless *found* is the revision that this code works with."""
    if found == REVISIONS[-1]:
        return
    if found is None or found in REVISIONS:
        state = "is empty" if found is None else f"has schema {found}, older than {REVISIONS[-1]}"
        raise BackendError(
            f"the ledger {shown(url)} {state}; run `hpcserve admin db upgrade`", retryable=False
        )
    refuse_newer(url, found)


def refuse_newer(url: URL, found: str) -> None:
    """Raise BackendError when *found* is a revision that this code has not heard of."""
    if found not in REVISIONS:
        raise BackendError(
            f"the ledger {shown(url)} has schema {found}, made by a newer hpcserve than this one"
            f" (schema {REVISIONS[-1]}); update hpcserve",
            retryable=False,
        )


def shown(url: URL) -> str:
    """Return the address for people: without a password."""
    return url.render_as_string(hide_password=True)


def _unknown(address: str) -> str:
    return (
        f"the ledger's address {address!r} is not known; write sqlite:////path/ledger.db,"
        " postgresql+psycopg://user@host/name, or memory:"
    )

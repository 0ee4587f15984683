"""The schema: migrations end at the tables, the database refuses unknown words."""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, inspect, text
from sqlalchemy.exc import IntegrityError

from hpcserve.domain.batch import BATCH, BATCH_REQUEST
from hpcserve.domain.instance import INSTANCE, Role
from hpcserve.domain.job import EndReason
from hpcserve.domain.lifecycle import Subject
from hpcserve.errors import BackendError, ConfigError
from hpcserve.ledger import open_ledger
from hpcserve.ledger.tables import REVISIONS, metadata
from hpcserve.ledger.upgrade import Upgrade, migrations, upgrade
from tests.contract.ledger.postgres_server import PostgresServer

_SQLITE = "SELECT type || ' ' || name, sql FROM sqlite_schema WHERE sql IS NOT NULL"
_POSTGRES = """
    SELECT 'constraint ' || conrelid::regclass || ' ' || conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT 'index ' || indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT 'column ' || table_name || ' ' || column_name,
        concat_ws(' ', data_type, is_nullable, column_default, ordinal_position)
    FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL SELECT 'options ' || relname, array_to_string(reloptions, ' ')
    FROM pg_class WHERE reloptions IS NOT NULL AND relnamespace = 'public'::regnamespace
"""


def _schema(connection: Connection) -> dict[str, list[str]]:
    """Return every object of the schema with the sorted lines of its definition."""
    query = _SQLITE if connection.dialect.name == "sqlite" else _POSTGRES
    return {
        name: sorted(re.sub(r'[\s",]+', " ", line).strip() for line in sql.splitlines())
        for name, sql in connection.execute(text(query))
        if "alembic" not in name + sql
    }


@pytest.fixture(params=["sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    word: str = request.param
    return word


@pytest.fixture
def migrated_url(kind: str, request: pytest.FixtureRequest) -> str:
    address: str = request.getfixturevalue(f"{kind}_url")
    return address


@pytest.fixture
def empty_url(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{tmp_path}/empty.db"
        return
    postgres: PostgresServer = request.getfixturevalue("postgres")
    yield postgres.database("empty")
    postgres.drop("empty")


@pytest.fixture
def migrated(migrated_url: str) -> Iterator[Engine]:
    engine = create_engine(migrated_url)
    yield engine
    engine.dispose()


def test_migrations_end_at_the_tables(migrated: Engine, empty_url: str) -> None:
    made = create_engine(empty_url)
    with made.begin() as connection:
        metadata.create_all(connection)
        from_tables = _schema(connection)
    made.dispose()
    with migrated.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
        assert _schema(connection) == from_tables


def test_the_code_names_every_revision_in_order() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations()))
    scripts = ScriptDirectory.from_config(config).walk_revisions()
    assert tuple(script.revision for script in scripts)[::-1] == REVISIONS


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("instances.state", INSTANCE.states),
        ("instances.role", tuple(Role)),
        ("instances.ending", tuple(EndReason)),
        ("instances.end_reason", tuple(EndReason)),
        ("batches.state", BATCH.states),
        ("batch_requests.state", BATCH_REQUEST.states),
        ("events.subject", tuple(Subject)),
    ],
)
def test_the_database_knows_the_same_words_as_the_code(
    migrated: Engine, column: str, words: tuple[str, ...]
) -> None:
    table, name = column.split(".")
    with migrated.connect() as connection:
        checks = {c["name"]: c["sqltext"] for c in inspect(connection).get_check_constraints(table)}
    assert set(re.findall(r"'(\w+)'", checks[f"ck_{table}_{name}"])) == set(words)


def test_the_database_refuses_an_unknown_word(migrated: Engine) -> None:
    with migrated.connect() as connection, pytest.raises(IntegrityError, match="ck_"):
        connection.execute(
            text(
                "INSERT INTO batch_requests (batch_seq, line_no, state, input_offset, input_length)"
                " VALUES (1, 1, 'lost', 0, 0)"
            )
        )


def test_an_upgrade_makes_a_ledger_and_says_what_it_found(empty_url: str) -> None:
    if empty_url.startswith("postgresql"):
        with pytest.raises(BackendError, match="is empty; run `hpcserve admin db upgrade`"):
            open_ledger(empty_url)
    assert upgrade(empty_url) == Upgrade(found=None, now=REVISIONS[-1])
    assert upgrade(empty_url) == Upgrade(found=REVISIONS[-1], now=REVISIONS[-1])
    asyncio.run(open_ledger(empty_url).close())


def test_a_file_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    upgrade(f"sqlite:///{file}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_newer_schema_is_refused(migrated: Engine, migrated_url: str) -> None:
    with migrated.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for attempt in (open_ledger, upgrade):
        with pytest.raises(BackendError, match="schema 9999, made by a newer hpcserve") as caught:
            attempt(migrated_url)
        assert not caught.value.retryable


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("mysql://x/y", "'mysql://x/y' is not known"),
        ("nonsense", "'nonsense' is not known"),
        ("sqlite:///relative.db", "must hold an absolute path"),
        ("sqlite:////nowhere/ledger.db", "run `hpcserve admin db upgrade`"),
        ("postgresql+psycopg://postgres:secret@/x?host=/nowhere", "does not answer"),
    ],
)
def test_an_address_that_does_not_work_is_one_sentence(address: str, sentence: str) -> None:
    with pytest.raises((BackendError, ConfigError)) as caught:
        open_ledger(address)
    assert sentence in caught.value.message
    assert "secret" not in caught.value.message

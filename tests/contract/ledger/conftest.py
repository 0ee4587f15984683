"""The three ledgers, each empty and of the newest schema, for every test of the contract."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from hpcserve.ledger import MEMORY, open_ledger
from hpcserve.ledger.upgrade import upgrade
from hpcserve.ports.ledger import Ledger
from tests.contract.ledger.postgres_server import PostgresServer, running_server

_numbers = count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Yield a server whose database `template` has the newest schema."""
    with running_server("fsync=off", "deadlock_timeout=100ms") as server:
        upgrade(server.database("template"))
        yield server


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "ledger.db"
    upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    file = tmp_path / "ledger.db"
    shutil.copy(sqlite_template, file)
    return f"sqlite:///{file}"


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    name = f"test{next(_numbers)}"
    yield postgres.database(name, like="template")
    postgres.drop(name)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest) -> str:
    """Return the address of a ledger that outlives a process."""
    address: str = request.getfixturevalue(f"{request.param}_url")
    return address


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def ledger(request: pytest.FixtureRequest) -> AsyncIterator[Ledger]:
    if request.param == "memory":
        opened = open_ledger(MEMORY)
    else:
        opened = open_ledger(request.getfixturevalue(f"{request.param}_url"))
    yield opened
    await opened.close()


@pytest.fixture
def reopen(url: str) -> Callable[[], Ledger]:
    """Return a way to open the ledger at `url` once more."""
    return lambda: open_ledger(url)

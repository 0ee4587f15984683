"""The ledgers on disk agree with the same model as the one in memory, in a shorter run."""

from __future__ import annotations

import shutil
import tempfile
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from hpcserve.ledger import open_ledger
from hpcserve.ports.ledger import Ledger
from tests.contract.ledger.postgres_server import PostgresServer
from tests.property.ledger.lines import Lines

SHORT = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_sqlite_agrees_with_the_model(sqlite_template: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        numbers = count()

        class SqliteLines(Lines):
            @staticmethod
            def open() -> Ledger:
                file = Path(folder) / f"{next(numbers)}.db"
                shutil.copy(sqlite_template, file)
                return open_ledger(f"sqlite:///{file}")

        run_state_machine_as_test(SqliteLines, settings=SHORT)


@pytest.mark.timeout(120)
def test_postgres_agrees_with_the_model(postgres: PostgresServer) -> None:
    numbers = count()

    class PostgresLines(Lines):
        @staticmethod
        def open() -> Ledger:
            return open_ledger(postgres.database(f"lines{next(numbers)}", like="template"))

    run_state_machine_as_test(PostgresLines, settings=SHORT)

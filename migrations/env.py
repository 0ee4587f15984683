"""What Alembic runs: the connection comes from hpcserve, or from `alembic -x url=...`."""

from __future__ import annotations

from typing import Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection
from sqlalchemy.types import TypeDecorator

from hpcserve.ledger.open import connect, parse
from hpcserve.ledger.tables import metadata


def render_plainly(kind: str, item: object, _: AutogenContext) -> str | Literal[False]:
    """Write our column types as the plain ones under them: a migration outlives the code."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{type(item.impl).__name__}()"
    return False


def migrate(connection: Connection) -> None:
    """Run the migrations in the connection's transaction."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        # SQLite changes a table by copying it
        render_as_batch=True,
        transactional_ddl=True,
        render_item=render_plainly,
    )
    with context.begin_transaction():
        context.run_migrations()


handed_in = context.config.attributes.get("connection")
if handed_in is not None:
    migrate(handed_in)
else:
    with connect(
        parse(context.get_x_argument(as_dictionary=True)["url"]), create=True
    ).begin() as own:
        migrate(own)

"""Rows and domain objects: a column has the name of its field, and its type knows the value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import CursorResult, RowMapping, Table


def to_row(table: Table, noun: object, *but: str) -> dict[str, Any]:
    """Return the values of *noun* for the columns of *table*, without the columns *but*."""
    return {c.name: getattr(noun, c.name) for c in table.columns if c.name not in but}


def each_row(result: CursorResult[Any]) -> Sequence[RowMapping]:
    """Return the rows as mappings by column name."""
    return result.mappings().all()

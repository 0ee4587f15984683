"""No field of a noun is left out of its table: it would come back as its default, unnoticed."""

from dataclasses import fields

import pytest

from hpcserve.domain.batch import Batch, InputFile
from hpcserve.domain.instance import Instance
from hpcserve.domain.key import ApiKey
from hpcserve.ledger import tables

#: kept in columns of `batch_counts`, which the hot statements write
SPREAD = {"counts", "usage"} | set(tables.batch_counts.columns.keys())


@pytest.mark.parametrize(
    ("noun", "table"),
    [
        (Instance, tables.instances),
        (Batch, tables.batches),
        (InputFile, tables.files),
        (ApiKey, tables.api_keys),
    ],
)
def test_every_field_has_a_column(noun, table):
    missing = {field.name for field in fields(noun)} - set(table.columns.keys()) - SPREAD
    assert missing == set()

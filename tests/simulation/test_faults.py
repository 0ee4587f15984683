"""A thousand small sites with faults: nothing is lost or doubled, and all comes right."""

import logging
from pathlib import Path

import pytest

from hpcserve.domain.batch import BatchState
from hpcserve.sim.site import simulate
from tests.simulation.sites import a_site

SEEDS = 1000
#: seeds of one test
EACH = 100
FAILED_ONCE = [
    int(line.split()[0])
    for line in Path(__file__).with_name("seeds.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_seeds_that_failed_once_pass():
    for seed in FAILED_ONCE:
        check(seed)


@pytest.mark.parametrize("first", range(0, SEEDS, EACH))
def test_a_site_comes_through_its_faults(first):
    for seed in range(first, first + EACH):
        check(seed)


def check(seed):
    """Simulate; the checkers inside raise with seed and story."""
    outcome = simulate(a_site(seed), seed)
    (batch,) = outcome.batches
    assert batch.is_terminal, seed
    counts = batch.counts
    assert counts.completed + counts.failed + counts.expired == counts.total, seed
    if batch.state is BatchState.COMPLETED:
        assert counts.expired == 0, seed

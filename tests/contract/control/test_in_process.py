"""The control contract on the service itself, as the simulator calls it."""

from __future__ import annotations

import pytest

from hpcserve.ports.control import Control
from tests.contract.control.site import Site
from tests.contract.control.suite import ControlContract


@pytest.fixture
def site() -> Site:
    return Site()


@pytest.fixture
def control(site: Site) -> Control:
    return site.service.of("inst-1", "inst-1-job")


class TestInProcess(ControlContract):
    """The suite."""

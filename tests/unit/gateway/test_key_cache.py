"""Which keys a gateway knows while the ledger answers, and while it does not."""

import pytest

from hpcserve.config import Gateway
from hpcserve.domain.key import ApiKey, digest
from hpcserve.errors import BackendError
from hpcserve.gateway.key_cache import KeyCache, digest_of
from hpcserve.ledger import open_ledger
from tests.builders import NOW
from tests.simulation.scripted import Clock

KEY = "hps-one"
SETTINGS = Gateway(key_cache_s=2.0, key_grace_s=10.0)


class Ledger:
    """A ledger that may be away."""

    def __init__(self):
        self.inner = open_ledger("memory:")
        self.away = False
        self.reads = 0

    async def transact(self, work):
        self.reads += 1
        if self.away:
            raise BackendError("the ledger does not answer", retryable=True)
        return await self.inner.transact(work)


@pytest.fixture
async def ledger():
    ledger = Ledger()
    key = ApiKey(
        id="key-1",
        digest=digest(KEY),
        prefix="hps-one",
        owner="ann",
        name="",
        created_at=NOW,
        expires_at=None,
        revoked_at=None,
    )
    await ledger.transact(lambda tx: tx.keys.add(key))
    return ledger


def a_cache(ledger):
    return KeyCache(ledger, Clock(), SETTINGS)


async def owner(cache):
    identity = await cache.look_up(KEY.encode())
    return identity and identity.owner


async def test_a_key_that_rested_a_while_is_known_when_the_ledger_goes_away(ledger):
    cache = a_cache(ledger)
    assert await owner(cache) == "ann"
    for _ in range(5):
        await cache.refresh()
    ledger.away = True
    await cache.refresh()
    assert await owner(cache) == "ann"


async def test_a_key_that_nobody_uses_is_forgotten(ledger):
    cache = a_cache(ledger)
    await owner(cache)
    for _ in range(7):
        await cache.refresh()
    assert cache.find(digest_of(KEY.encode())) is None


async def test_a_resting_key_is_revoked_within_one_refresh(ledger):
    cache = a_cache(ledger)
    await owner(cache)
    await cache.refresh()
    await ledger.transact(lambda tx: tx.keys.revoke("key-1", NOW))
    await cache.refresh()
    assert await owner(cache) is None


async def test_an_unknown_key_is_forgotten_at_once(ledger):
    cache = a_cache(ledger)
    assert await cache.look_up(b"hps-nobody") is None
    await cache.refresh()
    await cache.refresh()
    reads = ledger.reads
    await cache.refresh()
    assert ledger.reads == reads

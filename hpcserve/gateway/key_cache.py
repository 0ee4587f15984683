"""API keys as the hot path sees them: a bounded cache of digests, never a look into SQL.

- A key is found by its SHA-256 digest; comparing digests tells an attacker nothing about keys, so
  the look-up needs no constant time.
- An unknown digest is looked up once, joined by whoever asks meanwhile, and remembered as unknown.
- Every `key_cache_s` all entries are read again; that is the bound on a revocation, on an expiry,
  and on a new key that was tried too early. A key that nobody used for `key_grace_s` is forgotten,
  and an unknown one when nobody tried it since.
- When the ledger does not answer, known keys go on for `key_grace_s`; unknown ones get a 503.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping, Sequence

from hpcserve.config.tree import Gateway as GatewaySettings
from hpcserve.domain.key import ApiKey
from hpcserve.errors import BackendError, HpcserveError, RefusedError
from hpcserve.gateway.identity import Identity, Via
from hpcserve.ports.clock import Clock
from hpcserve.ports.ledger import Ledger, Tx

log = logging.getLogger(__name__)


class Entry:
    """What is known of one digest."""

    __slots__ = ("identity", "idle_rounds", "used")

    def __init__(self, identity: Identity | None) -> None:
        """Take who the key belongs to; None: to nobody."""
        self.identity = identity
        #: asked for since the last refresh
        self.used = True
        #: refreshes in a row without that
        self.idle_rounds = 0


class KeyCache:
    """Digests lately in use and whose they are."""

    def __init__(self, ledger: Ledger, clock: Clock, settings: GatewaySettings) -> None:
        self._ledger = ledger
        self._clock = clock
        self._settings = settings
        self._entries: dict[str, Entry] = {}
        self._asking: dict[str, asyncio.Task[Entry]] = {}
        self._fresh_at_s = clock.monotonic_s()

    def find(self, digest: str) -> Entry | None:
        """Return what is known of the key with this digest; None: it must be looked up."""
        entry = self._entries.get(digest)
        if entry is not None:
            entry.used = True
        return entry

    async def look_up(self, credential: bytes) -> Identity | None:
        """Return whose *credential* is, from the cache or the ledger; None: nobody's.

        Raises:
            RefusedError: too many unknown keys are being looked up.
            BackendError: the ledger does not answer.

        """
        digest = digest_of(credential)
        entry = self._entries.get(digest)
        if entry is None:
            task = self._asking.get(digest)
            if task is None:
                if len(self._asking) >= self._settings.key_lookups_max:
                    raise RefusedError(
                        "Too many unknown API keys are being checked; try again in a moment.",
                        http_status=503,
                        code="authentication_busy",
                        retry_after_s=1,
                    )
                task = asyncio.get_running_loop().create_task(self._ask(digest))
                self._asking[digest] = task
            # shielded: one caller that leaves must not fail the others
            entry = await asyncio.shield(task)
        entry.used = True
        return entry.identity

    async def _ask(self, digest: str) -> Entry:
        try:
            (key,) = await self._read((digest,))
        finally:
            del self._asking[digest]
        entry = Entry(self._owner(key))
        if len(self._entries) >= self._settings.keys_cached_max:
            # the oldest; if it is in use it comes back with one look-up
            del self._entries[next(iter(self._entries))]
        self._entries[digest] = entry
        return entry

    async def refresh(self) -> None:
        """Read the entries again, but for those that are forgotten now."""
        digests = tuple(digest for digest, entry in self._entries.items() if self._keeps(entry))
        try:
            keys = await self._read(digests) if digests else ()
        except HpcserveError as error:
            silent_s = self._clock.monotonic_s() - self._fresh_at_s
            if silent_s > self._settings.key_grace_s:
                self._entries.clear()
            log.warning("API keys cannot be read again since %.0f s: %s", silent_s, error.message)
            return
        self._fresh_at_s = self._clock.monotonic_s()
        before = self._entries
        self._entries = {}
        for digest, key in zip(digests, keys, strict=True):
            entry = before[digest]
            entry.identity = self._owner(key)
            entry.used = False
            self._entries[digest] = entry
        # entries that came while the ledger was read
        for digest, entry in before.items():
            if entry.used:
                self._entries.setdefault(digest, entry)

    def _keeps(self, entry: Entry) -> bool:
        """Count a refresh for *entry* and say whether it stays."""
        entry.idle_rounds = 0 if entry.used else entry.idle_rounds + 1
        settings = self._settings
        idle_max_s = 0.0 if entry.identity is None else settings.key_grace_s
        return entry.idle_rounds * settings.key_cache_s <= idle_max_s

    async def _read(self, digests: Sequence[str]) -> tuple[ApiKey | None, ...]:
        def read(tx: Tx) -> tuple[ApiKey | None, ...]:
            return tuple(tx.keys.by_digest(digest) for digest in digests)

        try:
            return await self._ledger.transact(read)
        except BackendError as error:
            raise BackendError(
                f"API keys cannot be checked at the moment: {error.message}", retryable=True
            ) from error

    def _owner(self, key: ApiKey | None) -> Identity | None:
        if key is None or key.revoked_at is not None:
            return None
        if key.expires_at is not None and key.expires_at <= self._clock.now():
            return None
        return Identity(owner=key.owner, is_admin=False, via=Via.KEY)


def digest_of(credential: bytes) -> str:
    """Return what the ledger stores in place of *credential*."""
    return hashlib.sha256(credential).hexdigest()


def credential(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the key that a request carries, as bearer token or as Anthropic's `x-api-key`."""
    value = headers.get(b"authorization")
    if value is None:
        return headers.get(b"x-api-key")
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" and token else None

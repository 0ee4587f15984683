"""An API key: shown once, stored hashed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

#: in front of every key, so that people and secret scanners recognise one
PREFIX = "hps-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """What the ledger knows of a key."""

    id: str
    #: SHA-256 of the whole key, hex; enough for a key of 256 random bits
    digest: str
    #: first characters, so that its owner recognises it
    prefix: str
    owner: str
    name: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


def digest(key: str) -> str:
    """Return what the ledger stores in place of *key*."""
    return hashlib.sha256(key.encode()).hexdigest()

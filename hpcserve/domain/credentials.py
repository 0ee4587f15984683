"""Keys of one instance, derived from the site's secret: nothing to store, nothing to look up."""

from __future__ import annotations

import hmac


def control_key(secret: bytes, instance_id: str) -> str:
    """Return the key with which this instance's agent calls the control API."""
    return _derive(secret, f"control:{instance_id}")


def engine_key(secret: bytes, instance_id: str) -> str:
    """Return the key that this instance's engine asks for on every route."""
    return _derive(secret, f"engine:{instance_id}")


def _derive(secret: bytes, label: str) -> str:
    return hmac.digest(secret, label.encode(), "sha256").hex()

"""Where agents find a gateway: one small file each in a folder that compute nodes share.

A gateway writes its file when it listens and removes it when it ends; a reader tries the newest
first and takes another when that one does not answer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAddress:
    """One gateway, as its file says."""

    gateway_id: str
    url: str
    written_at: datetime


def write_address(path: Path, address: GatewayAddress) -> None:
    """Write the file so that a reader sees all of it or nothing."""
    content = {
        "gateway_id": address.gateway_id,
        "url": address.url,
        "written_at": address.written_at.isoformat(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.replace(path)


def read_addresses(folder: Path) -> Sequence[GatewayAddress]:
    """Return all gateways that have a readable file, the newest first."""
    found = []
    for path in folder.glob("*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append(
                GatewayAddress(
                    gateway_id=content["gateway_id"],
                    url=content["url"],
                    written_at=datetime.fromisoformat(content["written_at"]),
                )
            )
        except (OSError, ValueError, KeyError):
            # just removed, or not a gateway's: another one may do
            continue
    return sorted(found, key=lambda address: address.written_at, reverse=True)

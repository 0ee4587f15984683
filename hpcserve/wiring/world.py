"""What all parts of one process share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from hpcserve.config import Config
from hpcserve.domain.model import Model
from hpcserve.ledger import open_ledger
from hpcserve.ports.clock import Clock, Ids
from hpcserve.ports.ledger import Ledger
from hpcserve.wiring.job import chat_preempts, engine_command
from hpcserve.wiring.site import Catalog, Paths, ledger_url, open_site, read_secret
from hpcserve.wiring.system import SystemClock, SystemIds


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The site as one process sees it."""

    config: Config
    paths: Paths
    secret: bytes
    catalog: Callable[[], Mapping[str, Model]]
    ledger: Ledger
    clock: Clock
    ids: Ids


def open_world(config: Config) -> World:
    """Open everything that the configuration names; raise ConfigError or BackendError."""
    paths = open_site(config)
    # a job would find it out too late
    chat_preempts(config.engine)
    engine = replace(config.engine, vllm=engine_command(config.engine, os.environ))
    return World(
        config=replace(config, engine=engine),
        paths=paths,
        secret=read_secret(paths),
        catalog=Catalog(config),
        ledger=open_ledger(ledger_url(config, paths)),
        clock=SystemClock(),
        ids=SystemIds(),
    )

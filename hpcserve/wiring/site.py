"""What a site has on disk: its state folder, its secret, its catalog, its ledger's address."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hpcserve.config import Config, load_catalog
from hpcserve.domain.model import Model
from hpcserve.errors import ConfigError
from hpcserve.ledger.upgrade import upgrade

log = logging.getLogger(__name__)

#: bytes of the secret from which the instances' keys are derived
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Paths:
    """Where things lie below the state folder."""

    state: Path

    @property
    def gateways(self) -> Path:
        """One file a gateway: where agents reach it."""
        return self.state / "gateways"

    @property
    def instances(self) -> Path:
        """One folder an instance: logs and scratch."""
        return self.state / "instances"

    @property
    def jobs(self) -> Path:
        """What was handed to the scheduler, one folder a job."""
        return self.state / "jobs"

    @property
    def batches(self) -> Path:
        """Input files, result segments and output files."""
        return self.state / "batches"

    @property
    def secret(self) -> Path:
        """The site's secret."""
        return self.state / "secret"

    def socket(self, config: Config) -> Path:
        """The gateway's Unix socket."""
        if config.gateway.socket:
            return Path(config.gateway.socket).expanduser()
        return self.state / "run" / "gateway.sock"


def open_site(config: Config) -> Paths:
    """Return the state folder's paths; make it, for its owner only, when it is not there."""
    state = Path(config.site.state_dir).expanduser().absolute()
    try:
        for folder in (state, state / "gateways", state / "instances", state / "run"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"[site] state_dir: {state} cannot be made: {error.strerror}; "
            "name a folder of yours on a file system that the compute nodes share."
        ) from error
    return Paths(state)


def read_secret(paths: Paths) -> bytes:
    """Return the site's secret; the first process makes it, whole, so that none reads half."""
    if not paths.secret.exists():
        handle, fresh = tempfile.mkstemp(dir=paths.state, prefix="secret.")
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(fresh, paths.secret)
        Path(fresh).unlink()
    secret = paths.secret.read_bytes()
    if len(secret) != _SECRET_BYTES:
        raise ConfigError(
            f"{paths.secret} is damaged; remove it and end all instances: it made their keys."
        )
    return secret


def ledger_url(config: Config, paths: Paths) -> str:
    """Return the ledger's address."""
    return config.ledger.url or f"sqlite:///{paths.state / 'ledger.db'}"


def upgrade_ledger(config: Config) -> tuple[str | None, str]:
    """Bring the ledger to this version's schema; return the revisions before and after."""
    done = upgrade(ledger_url(config, open_site(config)))
    return done.found, done.now


class Catalog:
    """The model catalog, read again when a file of its folders changes."""

    def __init__(self, config: Config) -> None:
        """Read it for the first time; raise ConfigError for a mistake in it."""
        self._folders = [Path(folder).expanduser() for folder in config.site.catalog_dirs]
        self._stamp = self._look()
        self._models = load_catalog(self._folders)

    def __call__(self) -> Mapping[str, Model]:
        """Return the models; a mistake made meanwhile leaves them as they were."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._models = load_catalog(self._folders)
            except ConfigError as error:
                log.warning("the catalog stays as it was: %s", error.message)
        return self._models

    def _look(self) -> tuple[tuple[str, int], ...]:
        return tuple(
            (str(path), path.stat().st_mtime_ns)
            for folder in self._folders
            for path in sorted(folder.glob("*.toml"))
        )

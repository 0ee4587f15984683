"""Runs one gateway process: sockets, the hot path before the ASGI app, and the background work.

Listens on TCP and on a Unix socket; several processes may share the TCP port. Writes down where the
agents find it, so that a job that starts later needs no other service to find its gateway.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import uvicorn
from fastapi import APIRouter
from typing_extensions import override
from uvicorn.config import HTTPProtocolType

from hpcserve.config.tree import Gateway as GatewaySettings
from hpcserve.errors import ConfigError
from hpcserve.gateway.app import build_app
from hpcserve.gateway.connection import Connection
from hpcserve.gateway.dispatch import Dispatch
from hpcserve.ports.gateways import GatewayAddress, write_address

log = logging.getLogger(__name__)

#: between two sweeps, s: the grain of all timeouts of connections
SWEEP_S = 1.0
#: allocations and generations between two collections
GC_THRESHOLDS = (10_000, 50, 100)


class GatewayServer:
    """One gateway process."""

    def __init__(
        self,
        dispatch: Dispatch,
        *,
        settings: GatewaySettings,
        socket_path: Path,
        gateways_dir: Path | None,
        admin_uids: frozenset[int],
        routers: Sequence[APIRouter] = (),
        tcp: socket.socket | None = None,
    ) -> None:
        """Take the shared state, where to listen, and the routers of the other parts.

        Without *gateways_dir* no address is written down: another process on the same port does.
        Without *tcp*, a bound socket, the one that *settings* name is bound.
        """
        self._tcp = tcp
        self._dispatch = dispatch
        self._settings = settings
        self._socket_path = socket_path
        self._gateways_dir = gateways_dir
        self.app = build_app(dispatch, routers)
        connection = partial(Connection, dispatch, admin_uids)
        self._server = _Server(
            uvicorn.Config(
                self.app,
                # uvicorn only ever calls it with its four keyword arguments
                http=cast("HTTPProtocolType", connection),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                ssl_certfile=settings.tls_cert or None,
                ssl_keyfile=settings.tls_key or None,
                backlog=settings.backlog,
                timeout_graceful_shutdown=int(settings.stop_s),
            )
        )
        #: where it listens, once it does
        self.url = ""

    async def serve(self) -> None:
        """Serve until `stop`.

        Raises:
            ConfigError: an address is taken or not ours.

        """
        tcp = self._tcp or bind_tcp(self._settings.host, self._settings.port)
        unix = bind_unix(self._socket_path)
        host, port = tcp.getsockname()[:2]
        scheme = "https" if self._settings.tls_cert else "http"
        self.url = self._settings.advertise_url or f"{scheme}://{_in_url(host)}:{port}"
        self._server.unix_socket = unix
        await self._dispatch.refresh()
        _calm_collector()
        background = asyncio.create_task(self._background())
        address = self._write_address()
        try:
            await self._server.serve(sockets=[tcp])
        finally:
            background.cancel()
            await asyncio.gather(background, return_exceptions=True)
            if address is not None:
                address.unlink(missing_ok=True)
            self._socket_path.unlink(missing_ok=True)
            self._dispatch.close()

    @property
    def started(self) -> bool:
        """Whether it listens."""
        return self._server.started

    def stop(self) -> None:
        """End: take no more connections, let answers finish for `stop_s`."""
        self._server.should_exit = True

    def _write_address(self) -> Path | None:
        if self._gateways_dir is None:
            return None
        gateway_id, now = self._dispatch.gateway_id, self._dispatch.clock.now()
        path = self._gateways_dir / f"{gateway_id}.json"
        write_address(path, GatewayAddress(gateway_id=gateway_id, url=self.url, written_at=now))
        return path

    async def _background(self) -> None:
        dispatch, settings = self._dispatch, self._settings
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._every(settings.refresh_s, dispatch.refresh))
            tasks.create_task(self._every(settings.key_cache_s, dispatch.keys.refresh))
            tasks.create_task(self._every(settings.demand_s, dispatch.report_demand))
            tasks.create_task(self._every(SWEEP_S, self._sweep))

    async def _every(self, seconds: float, work: Callable[[], object]) -> None:
        while True:
            await self._dispatch.clock.sleep(seconds)
            try:
                done = work()
                if asyncio.iscoroutine(done):
                    await done
            except Exception:
                # one failed round must not end the gateway; the next one may do better
                log.exception("background work failed")

    def _sweep(self) -> None:
        self._dispatch.sweep()
        for connection in tuple(self._server.server_state.connections):
            if isinstance(connection, Connection):
                connection.sweep(SWEEP_S)


class _Server(uvicorn.Server):
    """uvicorn's server with a Unix socket beside TCP, and signals left to who runs us."""

    unix_socket: socket.socket | None = None

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.unix_socket is None or self.should_exit:
            return
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            return self.config.http_protocol_class(  # type: ignore[call-arg]  # as uvicorn itself
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
                _loop=loop,
            )

        self.servers.append(
            await loop.create_unix_server(
                connection, sock=self.unix_socket, backlog=self.config.backlog
            )
        )

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _calm_collector() -> None:
    """Keep the garbage collector from walking over all that was imported, in mid-stream.

    Requests leave no cycles behind, so it has little to find; a full walk takes tens of ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def bind_tcp(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a socket bound to *host* and *port*; *shared*: with others of the same user.

    Raises:
        ConfigError: it cannot be had.

    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        family, kind, protocol, _, address = found
        # with the protocol named, or asyncio leaves Nagle's algorithm on: 44 ms a stream
        tcp = socket.socket(family, kind, protocol)
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        tcp.bind(address)
    except OSError as error:
        raise ConfigError(
            f"[gateway] host, port: cannot listen on {host}:{port}: {error.strerror or error}; "
            "choose another port, or end what listens there."
        ) from error
    tcp.setblocking(False)
    return tcp


def bind_unix(path: Path) -> socket.socket:
    """Return a socket bound to *path*; a file that nobody listens on any more is replaced.

    Anyone may connect who can reach the folder: the kernel tells us who it is.

    Raises:
        ConfigError: another gateway listens there, or the path cannot be used.

    """
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            if _answers(path):
                raise ConfigError(
                    f"[gateway] socket: another gateway listens on {path}; end it, or set another."
                )
            path.unlink()
        unix.bind(str(path))
        path.chmod(0o666)
    except OSError as error:
        unix.close()
        raise ConfigError(
            f"[gateway] socket: cannot listen on {path}: {error.strerror or error}; "
            "set a shorter path in a folder that is yours."
        ) from error
    unix.setblocking(False)
    return unix


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _in_url(host: str) -> str:
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared with, not bound to
        return os.uname().nodename
    return f"[{host}]" if ":" in host else host

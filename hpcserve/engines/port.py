"""Choose a TCP port for an engine and keep it for as long as the engine lives.

Linux lets a second socket bind and listen on a port whose other holder also has SO_REUSEADDR and
does not listen; vLLM and asyncio set that option. So the port is held from its choice on, there is
no moment in which it is free, and no other bind to port 0 is given it.
"""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Self


class HeldPort:
    """A bound socket that never listens."""

    def __init__(self, host: str) -> None:
        """Bind to a port of *host* that is free."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((host, 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Give the port up."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

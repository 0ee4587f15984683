"""`python -m hpcserve.engines.fake`; the same as `hpcserve fake-engine`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import uvloop

from hpcserve.engines.fake.server import FakeEngine
from hpcserve.engines.fake.settings import KEY_VARIABLE, Settings, parse_arguments


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM and return the exit status."""
    key = os.environ.get(KEY_VARIABLE, "")
    settings = parse_arguments(sys.argv[1:] if arguments is None else arguments, key=key)
    uvloop.run(_serve(settings))
    return 0


async def _serve(settings: Settings) -> None:
    await FakeEngine(settings).serve()


if __name__ == "__main__":
    sys.exit(main())

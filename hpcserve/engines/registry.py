"""Which adapter serves which kind of engine."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from hpcserve.domain.model import EngineKind
from hpcserve.engines.fake.launch import FakeAdapter
from hpcserve.engines.vllm.launch import VllmAdapter
from hpcserve.ports.engine import Engine


def engines(
    *,
    vllm: tuple[str, ...],
    allow_downloads: bool,
    shutdown_timeout_s: int,
    preempts: bool = True,
) -> Mapping[EngineKind, Engine]:
    """Return one adapter for each kind.

    Args:
        vllm: the command up to `serve`, such as `("/opt/engine/bin/vllm",)`.
        allow_downloads: let engines fetch weights from a hub.
        shutdown_timeout_s: time that running requests get after SIGTERM.
        preempts: interactive requests take slots from batch requests.

    """
    return {
        EngineKind.VLLM: VllmAdapter(
            command=vllm,
            allow_downloads=allow_downloads,
            shutdown_timeout_s=shutdown_timeout_s,
            preempts=preempts,
        ),
        EngineKind.FAKE: FakeAdapter(
            python=sys.executable, shutdown_timeout_s=shutdown_timeout_s, preempts=preempts
        ),
    }

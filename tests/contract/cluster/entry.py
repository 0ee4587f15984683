"""What runs in the jobs of the cluster contract: says that it ran, then does as its order asks."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from hpcserve.domain.job import AgentOrder

LONG_S = 300.0


def run(order: AgentOrder) -> None:
    """Follow `order.settings`: `exit` with a code, or `wait` until told to leave."""
    folder = Path(order.instance_dir)
    leaves_on = order.settings.get("leaves_on", ["SIGTERM"])
    assert isinstance(leaves_on, list)

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        (folder / name).touch()
        if name in leaves_on:
            sys.exit(0)

    signal.signal(signal.SIGUSR2, note)
    signal.signal(signal.SIGTERM, note)
    facts = {
        "pid": os.getpid(),
        "control_key": order.control_key,
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "environment": sorted(os.environ),
    }
    draft = folder / "draft"
    draft.write_text(json.dumps(facts))
    draft.rename(folder / "ran.json")
    code = order.settings.get("exit")
    if isinstance(code, int):
        sys.exit(code)
    deadline = time.monotonic() + LONG_S
    while time.monotonic() < deadline:
        time.sleep(0.05)

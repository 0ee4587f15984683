"""Start the fake engine; its metrics bear vLLM's names and are read by the same code."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hpcserve.domain.load import EngineLoad
from hpcserve.domain.model import Model
from hpcserve.engines.fake.settings import KEY_VARIABLE
from hpcserve.engines.vllm.metrics import read_load
from hpcserve.engines.vllm.preemption import BATCH_HEADERS
from hpcserve.ports.engine import Launch


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeAdapter:
    """The Engine port for EngineKind.FAKE; `Model.engine_args` are flags of the fake engine."""

    #: interpreter that can import hpcserve
    python: str
    shutdown_timeout_s: int
    #: interactive requests take slots from batch requests
    preempts: bool = True

    def launch(self, model: Model, *, host: str, port: int, key: str, scratch_dir: str) -> Launch:
        """Return how to start it."""
        slots_file = str(Path(scratch_dir) / "batch_slots") if self.preempts else None
        slots = ("--interactive-first", "--batch-slots-file", slots_file) if slots_file else ()
        return Launch(
            argv=(
                *(self.python, "-m", "hpcserve.engines.fake"),
                *("--max-model-len", str(model.max_model_len)),
                *("--max-num-seqs", str(model.max_num_seqs)),
                *("--shutdown-timeout", str(self.shutdown_timeout_s)),
                *slots,
                *model.engine_args,
                *("--served-model-name", model.name),
                *("--host", host),
                *("--port", str(port)),
            ),
            env={**model.engine_env, KEY_VARIABLE: key},
            batch_headers=BATCH_HEADERS if self.preempts else {},
            slots_file=slots_file,
            note="" if self.preempts else "chat takes no slots from batch: [engine] plugin is off",
        )

    def read_load(self, metrics: str, at: datetime) -> EngineLoad:
        """Parse the text of `/metrics`."""
        return read_load(metrics, at)

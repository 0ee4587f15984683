"""Build the command and environment of `vllm serve` from a Model."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hpcserve.domain.load import EngineLoad
from hpcserve.domain.model import Model
from hpcserve.engines.vllm.metrics import read_load
from hpcserve.engines.vllm.preemption import Preemption, preemption
from hpcserve.errors import ConfigError
from hpcserve.ports.engine import Launch

#: read by the guard inside vLLM; never argv, which every user of the node can read
KEY_VARIABLE = "HPCSERVE_ENGINE_KEY"
#: modules that vLLM's own interpreter imports; they need nothing but the standard library
PLUGINS = Path(__file__).parent / "plugins"
GUARD = "hpcserve_guard.Guard"
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmAdapter:
    """The Engine port for EngineKind.VLLM."""

    #: the command up to `serve`
    command: tuple[str, ...]
    allow_downloads: bool
    #: after SIGTERM running requests get so long; without it vLLM cuts them
    shutdown_timeout_s: int
    #: let interactive requests take slots from batch requests, where that was tested
    preempts: bool = True

    def launch(self, model: Model, *, host: str, port: int, key: str, scratch_dir: str) -> Launch:
        """Return how to start it; raise ConfigError for a model over several nodes."""
        if model.nodes != 1:
            raise ConfigError(
                f"model {model.name}: nodes = {model.nodes}, but an instance of vLLM is started on"
                " one node; use tensor_parallel over the GPUs of one node"
            )
        scratch = Path(scratch_dir)
        slots = preemption(model, command=self.command, is_wanted=self.preempts, scratch=scratch)
        return Launch(
            argv=self._argv(model, host, port, slots),
            env={**self._environment(model, key, scratch), **slots.env},
            batch_headers=slots.batch_headers,
            slots_file=slots.slots_file,
            note=slots.note,
        )

    def read_load(self, metrics: str, at: datetime) -> EngineLoad:
        """Parse the text of `/metrics`."""
        return read_load(metrics, at)

    def _argv(self, model: Model, host: str, port: int, slots: Preemption) -> tuple[str, ...]:
        revision = ("--revision", model.revision) if model.revision else ()
        cache: tuple[str, ...] = ()
        if model.kv_cache_mib is not None:
            # In bytes: the environment variable of the CPU engine knows only whole GiB.
            cache = ("--kv-cache-memory-bytes", str(model.kv_cache_mib * _MIB))
        return (
            *(*self.command, "serve", model.weights),
            *revision,
            *("--dtype", model.dtype),
            *("--max-model-len", str(model.max_model_len)),
            *("--max-num-seqs", str(model.max_num_seqs)),
            *("--tensor-parallel-size", str(model.tensor_parallel)),
            *("--pipeline-parallel-size", str(model.pipeline_parallel)),
            *cache,
            # A line for each heartbeat's scrape would bury what a failure says.
            "--disable-uvicorn-access-log",
            # The catalog's own arguments may change what stands above, not what stands below.
            *model.engine_args,
            *slots.arguments,
            *("--served-model-name", model.name),
            *("--host", host),
            *("--port", str(port)),
            *("--shutdown-timeout", str(self.shutdown_timeout_s)),
            # `--api-key` would leave /invocations, /metrics and /health open.
            *("--middleware", GUARD),
        )

    def _environment(self, model: Model, key: str, scratch: Path) -> dict[str, str]:
        paths = [str(PLUGINS)]
        if "PYTHONPATH" in model.engine_env:
            paths.append(model.engine_env["PYTHONPATH"])
        return {
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "NO_COLOR": "1",
            "HF_HUB_OFFLINE": "0" if self.allow_downloads else "1",
            # Home folders have quotas and are slow on many nodes at once.
            "XDG_CACHE_HOME": str(scratch / "cache"),
            "XDG_CONFIG_HOME": str(scratch / "config"),
            "VLLM_CACHE_ROOT": str(scratch / "cache" / "vllm"),
            "HF_HOME": str(scratch / "cache" / "huggingface"),
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "cache" / "torchinductor"),
            "TRITON_CACHE_DIR": str(scratch / "cache" / "triton"),
            **model.engine_env,
            # Not the job's: the agent's packages are of another interpreter.
            "PYTHONPATH": ":".join(paths),
            KEY_VARIABLE: key,
        }

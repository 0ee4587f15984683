"""A Model: weights plus what it takes to serve them. One entry of the catalog `etc/models.d`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class EngineKind(StrEnum):
    """Which program serves the model."""

    VLLM = "vllm"
    #: hpcserve's own stand-in: real HTTP, invented text; for tests and trying things out
    FAKE = "fake"


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Everything that a placement and an engine need to know about one model."""

    #: the name that clients use
    name: str
    engine: EngineKind = EngineKind.VLLM
    #: folder with the weights, or a hub name where the nodes may download
    weights: str
    revision: str | None = None
    #: GPUs of one instance on each of its nodes; 0 serves on CPU
    gpus_per_node: int = 1
    #: Slurm's GPU type (`h100`), or None for any
    gpu_type: str | None = None
    nodes: int = 1
    cpus_per_node: int = 4
    memory_gib_per_node: int = 32
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    #: tokens
    max_model_len: int = 8192
    #: engine's ceiling of concurrent requests
    max_num_seqs: int = 256
    #: MiB of KV cache; None lets the engine take what is free (a CPU engine needs a number)
    kv_cache_mib: int | None = None
    dtype: str = "auto"
    #: further arguments of the engine, as they are
    engine_args: tuple[str, ...] = ()
    #: further environment of the engine
    engine_env: Mapping[str, str] = field(default_factory=dict)
    #: instances kept whatever the load, and never exceeded
    min_instances: int = 0
    max_instances: int = 1
    #: an instance without work for so long is released, above min_instances
    idle_release_s: float = 900.0
    #: from the first word of the agent to READY; more is a load failure
    load_timeout_s: float = 1800.0
    #: time limit asked for each job
    time_limit_s: int = 4 * 3600
    #: Slurm partition, QOS and account, or None for the site's defaults (`[slurm]`)
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    #: inter-token latency that interactive users are promised, ms
    itl_slo_ms: float = 200.0
    #: time to first token that interactive users are promised, ms
    ttft_slo_ms: float = 10_000.0

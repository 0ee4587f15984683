"""Every setting: name with its unit, default, and one sentence.

`etc/hpcserve.toml` is this tree written out; a test holds the two equal. Every queue, retry, page,
cache and loop of hpcserve has its limit here.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What makes this site itself."""

    #: stands in every job's comment; two controllers of one user need two names
    name: str = "hpcserve"
    #: ledger, logs, batch files, secrets; on a file system that the compute nodes share
    state_dir: str = "~/.local/share/hpcserve"
    #: folders with one TOML file a model; later folders win
    catalog_dirs: tuple[str, ...] = ("/etc/hpcserve/models.d", "~/.config/hpcserve/models.d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Where the ledger is."""

    #: SQLAlchemy URL (`postgresql+psycopg://...`); empty: SQLite in the state folder
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slurm:
    """How jobs are submitted and watched."""

    #: auto, cli (squeue, sacct, scontrol), pyslurm, or local (no Slurm: processes on this machine)
    backend: str = "auto"
    #: for instances that people wait for; empty: Slurm's default partition
    partition: str = ""
    #: preemptible partition for batch instances; empty: the same as `partition`
    opportunistic_partition: str = ""
    #: empty: Slurm's default
    qos: str = ""
    #: who pays; empty: Slurm's default account of the user
    account: str = ""
    #: warning before the time limit, s: long enough to drain; Slurm checks every 30 s
    notice_s: int = 120
    #: a scheduler command that takes longer counts as no answer; squeue blocks 10 s in an outage
    command_timeout_s: float = 20.0
    #: shell lines before the agent starts in the job (`module load cuda`)
    setup: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Controller:
    """The loop that observes, decides and acts."""

    #: between two ticks without events; each tick asks squeue once
    tick_s: float = 5.0
    #: shortest time between two ticks, however many events come
    tick_min_s: float = 1.0
    #: leadership lasts so long without renewal; several ticks
    leader_ttl_s: float = 30.0
    #: an agent silent for so long is UNREACHABLE; several heartbeats
    silence_s: float = 30.0
    #: an agent silent for so long in a running job is given up and replaced
    abandon_s: float = 600.0
    #: a running job whose agent never registered is given up after so long
    register_timeout_s: float = 300.0
    #: a committed intent without a job in squeue is submitted (again) after so long
    intent_grace_s: float = 30.0
    #: a job that neither squeue nor accounting knows is LOST after so long
    vanish_s: float = 60.0
    #: an instance told to stop gets its job cancelled again after so long
    stop_repeat_s: float = 60.0
    #: first pause after a fault of a model's instance; doubles with each fault in a row
    backoff_first_s: float = 5.0
    #: longest such pause
    backoff_max_s: float = 600.0
    #: faults in a row after which a model is given up until an operator resets it
    failures_max: int = 3
    #: ended instances that status shows and back-off looks at
    ended_shown: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How many instances there should be."""

    #: an unserved request keeps its model wanted for so long
    demand_memory_s: float = 300.0
    #: waiting batch requests that justify one more instance
    batch_requests_per_instance: int = 2000
    #: a successor is submitted so long before a wanted instance's time limit, s, but not before
    #: three quarters of it have passed
    handover_s: float = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The HTTP front."""

    #: interface to listen on; 0.0.0.0 for compute nodes on a network
    host: str = "127.0.0.1"
    #: TCP port; 0 lets the system choose
    port: int = 8620
    #: Unix socket for login-node users; empty: `run/gateway.sock` in the state folder
    socket: str = ""
    #: URL under which compute nodes reach the gateway; empty: made from host and port
    advertise_url: str = ""
    #: between two looks at the ledger for the instances that serve
    refresh_s: float = 0.25
    #: largest request body, bytes
    max_body_bytes: int = 64 * 1024 * 1024
    #: largest request head, bytes
    max_header_bytes: int = 32 * 1024
    #: a client may take so long to send its request, s
    request_timeout_s: float = 60.0
    #: silence of an engine before and between bytes after which it has failed, s
    stall_timeout_s: float = 300.0
    #: other instances tried before the first byte of an answer
    retries_max: int = 2
    #: requests that wait for one model's instances; more are refused
    queue_max: int = 1024
    #: a request waits so long for an instance before it is refused, s
    queue_timeout_s: float = 60.0
    #: listen backlog; a short one costs a second per burst
    backlog: int = 2048
    #: an API key is looked up again after so long: the bound on a revocation, s
    key_cache_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """Our process beside the engine."""

    #: between two words of an agent to the control API
    heartbeat_s: float = 5.0
    #: a call to the control API that takes longer has failed, s
    call_timeout_s: float = 10.0
    #: the gateway is out of reach for so long: end, since nobody can use this instance
    orphan_s: float = 900.0
    #: an engine that fails so many health checks in a row is ended
    unhealthy_max: int = 6
    #: requests in flight get so long to finish when draining, s
    drain_s: float = 90.0
    #: lines of the engine's log that a failure quotes
    log_lines: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """Batch files and their requests."""

    #: lines of one input file
    max_lines: int = 5_000_000
    #: bytes of one input file
    max_file_bytes: int = 20 * 1024**3
    #: bytes of one line
    max_line_bytes: int = 8 * 1024**2
    #: errors listed for a file that is refused
    max_errors: int = 100
    #: requests of one lease
    lease_size: int = 256
    #: a lease lasts so long without renewal, s; several heartbeats
    lease_ttl_s: float = 60.0
    #: losses of its instance after which a request is failed
    max_attempts: int = 3
    #: shortest completion window
    window_min_s: int = 3600
    #: longest completion window
    window_max_s: int = 30 * 24 * 3600
    #: completion window when the client names none
    window_default: str = "24h"
    #: input and result files are kept for so long, s
    keep_files_s: int = 30 * 24 * 3600
    #: between two looks for batches to validate, settle and finalise, s
    poll_s: float = 0.5
    #: result segment files are closed at this size, bytes
    segment_bytes: int = 256 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How engines are started on the nodes."""

    #: the vllm command; empty: the environment that `slurm/setup engine` made, else `vllm` on PATH
    vllm: str = ""
    #: let engines download weights from a hub; most compute nodes cannot
    allow_downloads: bool = False
    #: interface address that engines listen on; empty: the node's own name, or loopback when local
    listen_host: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole tree; a section of the TOML file each."""

    site: Site = field(default_factory=Site)
    ledger: Ledger = field(default_factory=Ledger)
    slurm: Slurm = field(default_factory=Slurm)
    controller: Controller = field(default_factory=Controller)
    scaling: Scaling = field(default_factory=Scaling)
    gateway: Gateway = field(default_factory=Gateway)
    agent: Agent = field(default_factory=Agent)
    batching: Batching = field(default_factory=Batching)
    engine: Engine = field(default_factory=Engine)

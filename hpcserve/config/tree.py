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
    #: logs of an ended instance are kept for so long, s
    keep_logs_s: float = 14 * 24 * 3600.0
    #: ended instances that status shows and back-off looks at
    ended_shown: int = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How many instances there should be."""

    #: scaling policy, by its name in hpcserve/policy/scaling/registry.py
    policy: str = "demand"
    #: an unserved request keeps its model wanted for so long
    demand_memory_s: float = 300.0
    #: waiting batch requests that justify one more instance
    batch_requests_per_instance: int = 2000
    #: a successor is submitted so long before a wanted instance's time limit, s, but not before
    #: three quarters of it have passed
    handover_s: float = 900.0
    #: GPUs that instances of all models hold or wait for; 0: only the scheduler limits them
    gpus_max: int = 0
    #: from request to READY, until it has been measured, s; queue wait and load
    ready_first_s: float = 600.0
    #: part of an instance's slots that chat may fill, until arrivals have been measured: Theta
    theta_first: float = 0.34
    #: batch requests that one instance finishes in a second, until it has been measured
    batch_rate_first: float = 1.0
    #: batch work is planned to need no more than this part of the time that is left
    batch_slack_ratio: float = 0.7
    #: longest time limit of an opportunistic batch instance, s: idle GPUs last minutes to hours
    opportunistic_s: int = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The HTTP front."""

    #: interface to listen on; 0.0.0.0 for compute nodes on a network
    host: str = "127.0.0.1"
    #: TCP port; 0 lets the system choose
    port: int = 8620
    #: gateway processes that share the port; one core serves some ten thousand requests/s
    workers: int = 1
    #: Unix socket for login-node users; empty: `run/gateway.sock` in the state folder
    socket: str = ""
    #: certificate file (PEM) for TLS on the port; empty: plain HTTP
    tls_cert: str = ""
    #: and its key file
    tls_key: str = ""
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
    #: while the ledger does not answer, known keys go on for so long, s
    key_grace_s: float = 600.0
    #: keys in the cache, known and unknown
    keys_cached_max: int = 10_000
    #: unknown keys that are looked up at the same time; more are told to come again
    key_lookups_max: int = 64
    #: how an instance is picked: least_loaded, packing, affinity, slo_headroom, round_robin
    router: str = "least_loaded"
    #: between two reports of demand to the controller, s
    demand_s: float = 1.0
    #: an idle connection of a client is closed after so long, s
    keep_alive_s: float = 75.0
    #: a refused client may go on sending for so long, so that it reads why, s
    linger_s: float = 5.0
    #: a client that takes nothing of its answer for so long is cut off, s
    slow_reader_s: float = 60.0
    #: unread bytes of an answer after which the engine is held back
    write_buffer_bytes: int = 256 * 1024
    #: connecting to an engine may take so long, s
    connect_timeout_s: float = 5.0
    #: idle connections to one engine that are kept
    upstream_idle_max: int = 1024
    #: they are closed after so long; engines close theirs after 5 s
    upstream_idle_s: float = 4.0
    #: an answer that is no stream is held until complete, so that it can be retried, up to here
    answer_buffer_bytes: int = 1024 * 1024
    #: largest event of a stream, bytes
    event_bytes_max: int = 8 * 1024 * 1024
    #: answers under way get so long to finish when the gateway ends, s
    stop_s: float = 30.0
    #: a client whose request queue is full is told to come again after so long, s
    queue_retry_s: float = 5.0
    #: retries that one model may have made in a burst
    retry_credit_max: float = 50.0
    #: and how many more each second
    retry_credit_per_s: float = 5.0
    #: failed attempts in a row after which an instance rests (but never the last one)
    breaker_faults: int = 3
    #: it rests for so long, s
    breaker_rest_s: float = 10.0
    #: longest time that a client may ask to be held for a cold model (`?wait=`), s
    wait_max_s: float = 3600.0
    #: a held stream gets a comment so often that no proxy in between gives up, s
    comment_s: float = 10.0
    #: times that one stream is continued on another instance
    resumes_max: int = 5
    #: a broken stream waits so long for an instance that continues it, s
    resume_wait_s: float = 60.0


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
    #: SIGTERM leaves so long before Slurm kills (its KillWait is 30 s by default), s
    term_s: float = 25.0
    #: the engine gets so long to end after SIGTERM, s; vLLM takes 2 to 5
    stop_s: float = 10.0
    #: an agent that ends tries so long to hand everything in and to say so, s
    last_word_s: float = 15.0
    #: lines of the engine's log that a failure quotes
    log_lines: int = 20
    #: between two readings of the engine's health and metrics, s; chat sheds batch within one
    probe_s: float = 0.5
    #: a reading that takes longer has failed, s
    probe_timeout_s: float = 5.0
    #: pause after a failed call to the control API; doubles with each failure, with jitter, s
    retry_first_s: float = 0.2
    #: longest such pause, s
    retry_max_s: float = 5.0
    #: gateways tried for one call
    gateways_max: int = 8
    #: body of one call to the control API, bytes; not above `[gateway] max_body_bytes`
    call_max_bytes: int = 64 * 1024**2
    #: batch requests asked for at one go
    lease_max: int = 256
    #: batch requests are leased so far ahead of the engine, s
    prefetch_s: float = 2.0
    #: pause when there is no batch work, s
    lease_poll_s: float = 0.5
    #: results handed in at one go
    settle_max: int = 256
    #: a result waits so long for company before it is handed in, s
    settle_s: float = 0.2
    #: results that wait to be handed in; no more work is leased above it
    unsettled_max: int = 2048
    #: times that a batch request is repeated when the engine fails without a fault of the request
    line_retries: int = 2
    #: pause before such a repetition; doubles, s
    line_retry_s: float = 1.0
    #: the engine may take so long for one batch request, s
    line_timeout_s: float = 3600.0
    #: answer of the engine to one batch request, bytes
    answer_max_bytes: int = 16 * 1024**2
    #: slots are kept free for chat so long after the last chat request, s
    interactive_memory_s: float = 60.0
    #: an engine that knows batch from chat holds batch above the cap back for so long before it is
    #: handed to other instances, s
    hold_s: float = 10.0


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
    #: input of one lease, bytes, unless one line is longer; half of `[agent] call_max_bytes`
    lease_max_bytes: int = 32 * 1024**2
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
    #: input is read in blocks of so many bytes; a few of them are in memory at a time
    read_block_bytes: int = 1024**2
    #: lines of one transaction while a file is validated: a second of work at most, so that results
    #: of other batches go on
    validate_chunk: int = 10_000
    #: files that are validated or results that are written at the same time in one controller
    tasks_max: int = 2
    #: pause before a failed validation or finalisation is tried again, s
    retry_pause_s: float = 5.0
    #: packing policy; `edf` is the one there is
    packing: str = "edf"
    #: deadlines so near to one another count as equal, and owners take turns inside, s
    deadline_bucket_s: int = 3600
    #: a request is taken to last so long until its batch has been measured, s
    request_s: float = 60.0
    #: an agent's results wait for others to share one fsync and commit, so many at a time at most
    settle_group: int = 64
    #: leases whose duration is being measured, and batches with a measured request time
    leases_measured: int = 4096
    #: a segment without writes for so long gets none any more, and can be removed twice as late, s
    segment_idle_s: float = 600.0
    #: result rows read from the ledger at a time when files are written
    result_page: int = 5_000
    #: a repeated create that names itself a retry is recognised for so long: a client's timeout, s
    retry_window_s: float = 900.0
    #: between two looks for expired files and segments that nobody needs, s
    sweep_s: float = 60.0
    #: between two estimates of when batches will be done, s
    estimate_s: float = 1.0
    #: batches with an estimate, those with the earliest deadlines; later ones get theirs later
    estimates_max: int = 500
    #: command that is run when a batch has ended, `["/usr/local/bin/mail-owner"]`; it finds
    #: HPCSERVE_BATCH_ID, _STATUS, _OWNER, _MODEL, _COMPLETED, _FAILED and _TOTAL in its environment
    on_end: tuple[str, ...] = ()
    #: it may take so long before it is killed, s
    on_end_timeout_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How engines are started on the nodes."""

    #: the vllm command; empty: the environment that `slurm/setup engine` made, else `vllm` on PATH
    vllm: str = ""
    #: let engines download weights from a hub; most compute nodes cannot
    allow_downloads: bool = False
    #: interface address that engines listen on; empty: the node's own name, or loopback when local
    listen_host: str = ""
    #: let chat take slots from batch inside the engine: auto (releases it was tested with) or off
    plugin: str = "auto"


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

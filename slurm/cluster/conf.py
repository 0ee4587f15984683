"""The configuration files of a dev cluster, as text; 22.05 and later releases differ in keys.

Rules: a key that a Slurm release does not know stops every daemon and client, so each difference
stands here; timers are short, because tests wait for them. The port numbers and the address come
from the facts.
"""

from cluster.layout import Facts, Layout, user_name

SCHEDULER = (
    "bf_interval=1,bf_continue,bf_max_job_test=500,bf_resolution=60,bf_window=1440,"
    "bf_yield_interval=1000000,sched_interval=1,sched_min_interval=0,sched_max_job_start=0,"
    "batch_sched_delay=0"
)
"""Decide, and renew start estimates, within a second."""

NODE_SHAPE = (
    "CPUs=16 Boards=1 SocketsPerBoard=1 CoresPerSocket=16 ThreadsPerCore=1 RealMemory=64000"
)
"""What a node claims to be, whatever the machine is."""

PARTITIONS = {
    "gpu": "Default=YES PriorityTier=10 PreemptMode=OFF",
    "opportunistic": "PriorityTier=1 PreemptMode=CANCEL GraceTime=5",
    "requeue": "PriorityTier=1 PreemptMode=REQUEUE GraceTime=5",
}
"""All hold every node; `gpu` preempts the other two."""


def slurm_conf(facts: Facts, layout: Layout) -> str:
    """Write slurm.conf."""
    return "\n".join(
        [
            *_identity(facts, layout),
            *_release(facts),
            *_behaviour(facts),
            *(_accounting(facts, layout) if facts.accounting else _no_accounting(layout)),
            *_nodes(facts),
            *_partitions(facts),
            "",
        ]
    )


def gres_conf(facts: Facts, layout: Layout) -> str:
    """Write gres.conf: the fake GPUs are links to a file that exists."""
    last = facts.gpus_per_node - 1
    return (
        "AutoDetect=off\n"
        f"NodeName={_all(facts)} Name=gpu Type=h100 File={layout.root}/dev/nvidia[0-{last}]\n"
    )


def cgroup_conf(facts: Facts) -> str:
    """Write cgroup.conf: cgroups are not used, and each release has its way to say so."""
    return "CgroupPlugin=cgroup/v1\n" if facts.old else "CgroupPlugin=disabled\n"


def slurmdbd_conf(facts: Facts, layout: Layout, password: str) -> str:
    """Write slurmdbd.conf, which must be readable by its owner alone."""
    return f"""\
AuthType=auth/munge
AuthInfo=socket={layout.munge_socket}
DbdHost=localhost
DbdAddr={facts.address}
DbdPort={facts.dbd_port}
{_listen(facts)}
SlurmUser={user_name()}
LogFile={layout.log("slurmdbd")}
PidFile={layout.pid_file("slurmdbd")}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass={password}
StorageLoc=slurm_acct_db
"""


def _all(facts: Facts) -> str:
    return f"gpu[01-{len(facts.nodes):02d}]"


def _listen(facts: Facts) -> str:
    if facts.loopback_only:
        return "CommunicationParameters=NoInAddrAny,NoCtldInAddrAny"
    return "# this machine's name is no loopback address: the daemons listen on every interface"


def _identity(facts: Facts, layout: Layout) -> list[str]:
    return [
        f"ClusterName={facts.cluster}",
        f"SlurmctldHost=localhost({facts.address})",
        f"SlurmctldPort={facts.controller_port}",
        f"SlurmUser={user_name()}",
        f"SlurmdUser={user_name()}",
        "AuthType=auth/munge",
        # A requeued job waits for cred_expire + 1 s; the default would be two minutes.
        f"AuthInfo=socket={layout.munge_socket},cred_expire=5",
        _listen(facts),
        f"StateSaveLocation={layout.root}/state",
        f"SlurmdSpoolDir={layout.root}/run/spool.%n",
        f"SlurmctldPidFile={layout.pid_file('slurmctld')}",
        f"SlurmdPidFile={layout.pid_file('slurmd.%n')}",
        f"SlurmctldLogFile={layout.log('slurmctld')}",
        f"SlurmdLogFile={layout.log('slurmd.%n')}",
        "MailProg=/bin/true",
    ]


def _release(facts: Facts) -> list[str]:
    """What 22.05 calls otherwise; later releases refuse the old words and 22.05 the new ones."""
    if facts.old:
        return [
            "TaskPlugin=task/none",
            "SwitchType=switch/none",
            "SlurmctldParameters=preempt_send_user_signal",
        ]
    return ["PreemptParameters=send_user_signal"]


def _behaviour(facts: Facts) -> list[str]:
    return [
        "ProctrackType=proctrack/linuxproc",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=5",
        "MpiDefault=none",
        "SlurmdParameters=config_overrides",
        "GresTypes=gpu",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "SchedulerType=sched/backfill",
        f"SchedulerParameters={SCHEDULER}",
        "PriorityType=priority/multifactor",
        "PriorityWeightPartition=1000",
        *(["PriorityWeightAge=10", "PriorityWeightQOS=10000"] if facts.accounting else []),
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "EnforcePartLimits=ALL",
        "ReturnToService=2",
        "MinJobAge=300",
        "KillWait=2",
        "CompleteWait=0",
        "EpilogMsgTime=0",
        "SlurmctldTimeout=10",
        "SlurmdTimeout=10",
        "MessageTimeout=10",
        "BatchStartTimeout=10",
    ]


def _accounting(facts: Facts, layout: Layout) -> list[str]:
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        f"AccountingStorageHost={facts.address}",
        f"AccountingStoragePort={facts.dbd_port}",
        f"AccountingStoragePass={layout.munge_socket}",
        "AccountingStorageTRES=gres/gpu",
        "AccountingStorageEnforce=associations,limits,qos",
        "AccountingStoreFlags=job_comment,job_env,job_script",
    ]


def _no_accounting(layout: Layout) -> list[str]:
    """Keep one line for each finished job all the same."""
    return [
        "AccountingStorageType=accounting_storage/none",
        "JobCompType=jobcomp/filetxt",
        f"JobCompLoc={layout.log('jobcomp')}",
    ]


def _nodes(facts: Facts) -> list[str]:
    return [
        f"NodeName={name} NodeAddr={facts.address} NodeHostname=localhost Port={port} "
        f"{NODE_SHAPE} Gres=gpu:h100:{facts.gpus_per_node} Feature=h100 State=UNKNOWN"
        for name, port in zip(facts.nodes, facts.node_ports, strict=True)
    ]


def _partitions(facts: Facts) -> list[str]:
    every = f"Nodes={_all(facts)} DefaultTime=10 MaxTime=24:00:00 State=UP"
    return [f"PartitionName={name} {every} {how}" for name, how in PARTITIONS.items()]

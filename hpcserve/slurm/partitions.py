"""Partitions and their GPUs: `scontrol show partition` for the rules, `sinfo` for the nodes.

GPUs are read from the nodes' GRES, not from TRES: without slurmdbd TRES know no GPUs. A GPU counts
as idle only where a job could get it now, so not on nodes that backfill holds for someone else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from hpcserve.domain.job import Partition
from hpcserve.slurm.times import parse_duration_s

PARTITIONS_ARGV = ("scontrol", "--oneliner", "show", "partition")
NODES_ARGV = (
    "sinfo",
    "--Node",
    "--noheader",
    "--Format=NodeList:|,Partition:|,StateLong:|,Gres:|,GresUsed:|",
)

_GPUS = re.compile(r"(?:^|,)gpu(?::[^:,()]+)?:(\d+)")
_PAIR = re.compile(r"(\w+)=(\S*)")
#: states in which a node takes jobs; `~` is a node that Slurm wakes up when it is needed
_TAKES_JOBS = re.compile(r"(idle|mixed|allocated)[~#]?")
_IDLE = re.compile(r"idle[~#]?")


@dataclass(frozen=True, slots=True)
class NodeLine:
    """One node as a member of one partition."""

    name: str
    partition: str
    #: Slurm's word with its flag: `mixed`, `idle~`, `down*`
    state: str
    gpus: int
    gpus_used: int

    @property
    def gpus_idle(self) -> int:
        """GPUs that a job could get now."""
        return max(0, self.gpus - self.gpus_used) if _TAKES_JOBS.fullmatch(self.state) else 0

    @property
    def is_idle(self) -> bool:
        """Whether the whole node is free."""
        return _IDLE.fullmatch(self.state) is not None


def count_gpus(gres: str) -> int:
    """Count the GPUs in `gpu:h100:2(IDX:0-1),nvme:1`."""
    return sum(int(number) for number in _GPUS.findall(gres))


def parse_nodes(out: str) -> list[NodeLine]:
    """Read the answer to NODES_ARGV."""
    nodes = []
    for line in out.splitlines():
        name, partition, state, gres, used, *_ = [*line.split("|"), "", "", "", ""]
        nodes.append(
            NodeLine(name, partition.rstrip("*"), state, count_gpus(gres), count_gpus(used))
        )
    return nodes


def parse_partitions(out: str, nodes: list[NodeLine]) -> tuple[Partition, ...]:
    """Read the answer to PARTITIONS_ARGV and add up the nodes of each partition."""
    partitions = []
    for line in out.splitlines():
        pairs = dict(_PAIR.findall(line))
        if "PartitionName" not in pairs:
            continue
        name = pairs["PartitionName"]
        members = [node for node in nodes if node.partition == name]
        mode = pairs.get("PreemptMode")
        partitions.append(
            Partition(
                name=name,
                is_default=pairs.get("Default") == "YES",
                is_up=pairs.get("State") == "UP",
                max_time_s=parse_duration_s(pairs.get("MaxTime", "")),
                priority_tier=int(pairs.get("PriorityTier", "1")),
                preempt_mode=mode.lower() if mode else None,
                grace_s=int(pairs["GraceTime"]) if pairs.get("GraceTime", "").isdigit() else None,
                nodes_total=len(members),
                nodes_idle=sum(node.is_idle for node in members),
                gpus_total=sum(node.gpus for node in members),
                gpus_idle=sum(node.gpus_idle for node in members),
            )
        )
    return tuple(partitions)

"""Shapes a job for one instance: partition, size, time limit. Pure."""

from __future__ import annotations

from hpcserve.config import Slurm
from hpcserve.domain.instance import Role
from hpcserve.domain.job import AgentOrder, JobSpec
from hpcserve.domain.model import Model


def place(
    model: Model,
    role: Role,
    order: AgentOrder,
    settings: Slurm,
    *,
    time_limit_s: int | None = None,
    time_min_s: int | None = None,
) -> JobSpec:
    """Return the job for an instance of *model*.

    The catalog's partition, QOS and account win over the site's; batch instances go to the
    opportunistic partition where there is one. A time limit given here wins over the catalog's.
    """
    limit_s = time_limit_s or model.time_limit_s
    site_partition = (
        settings.opportunistic_partition or settings.partition
        if role is Role.BATCH
        else settings.partition
    )
    return JobSpec(
        token=order.token,
        name=f"hpcserve-{model.name}"[:64],
        partition=model.partition or site_partition or None,
        qos=model.qos or settings.qos or None,
        account=model.account or settings.account or None,
        nodes=model.nodes,
        gpus_per_node=model.gpus_per_node,
        gpu_type=model.gpu_type,
        cpus_per_node=model.cpus_per_node,
        memory_gib_per_node=model.memory_gib_per_node,
        time_limit_s=limit_s,
        time_min_s=time_min_s,
        notice_s=min(settings.notice_s, limit_s // 2),
        order=order,
    )

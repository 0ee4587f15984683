"""Real parts that several integration tests share."""

from tests.integration.slurm_cluster import slurm_cluster

__all__ = ["slurm_cluster"]

"""Serves large language models on Slurm clusters, interactive and batch, from one pool of GPUs."""

__version__ = "0.1.0"

"""A private Slurm cluster with fake GPUs on one machine, for development and tests.

Standard library only: it runs before there is a virtual environment. It knows nothing of hpcserve.
"""

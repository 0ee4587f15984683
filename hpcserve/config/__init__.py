"""The configuration: one typed tree, its sources, and the model catalog.

`tree` holds every setting with its unit, default and reason; `load` reads the sources over one
another; `catalog` reads the models. Nothing else in hpcserve reads a setting from anywhere else.
"""

from hpcserve.config.catalog import load_catalog
from hpcserve.config.load import load_config
from hpcserve.config.tree import (
    Agent,
    Batching,
    Config,
    Controller,
    Engine,
    Gateway,
    Ledger,
    Scaling,
    Site,
    Slurm,
)

__all__ = [
    "Agent",
    "Batching",
    "Config",
    "Controller",
    "Engine",
    "Gateway",
    "Ledger",
    "Scaling",
    "Site",
    "Slurm",
    "load_catalog",
    "load_config",
]

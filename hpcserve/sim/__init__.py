"""A simulated site: the production policies and controller against a model of Slurm and engines.

Two worlds over the same pure policies. `site` runs the production controller, control service,
packer and router with single requests on an asyncio loop in virtual time, with faults and checkers:
it finds bugs. `study` runs the production decision over flows of requests, a month in seconds: it
compares policies. `slurm`, `performance` and `faults` are shared by both.
"""

"""The scheduler adapters: Slurm by its commands or by pyslurm, and plain processes without Slurm.

Read in this order: `states` (Slurm's words and ours), `submission` (the script that is handed in),
`squeue` and `accounting` (what became of it), `cluster` (all of it behind the port), `choose`.
"""

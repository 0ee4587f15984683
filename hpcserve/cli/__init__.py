"""The command line: researchers, operators, and the processes themselves.

Exit codes: 0 done, 1 failed, 2 usage, 3 refused by policy. Every error is one sentence on standard
error. `--json` prints what the server said; colours and progress bars appear only on a terminal.
Heavy modules are imported inside the commands, so that `--help` answers at once.
"""

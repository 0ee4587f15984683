"""Become another program whose process group dies with the process that holds a pipe.

Usage: python leash.py PIPE_FD PROGRAM [ARGUMENT...]

A watcher waits beside the program for the end of the pipe, which comes when the holder closes it
or dies in any way, and then kills the group. It stands in a session of its own, so that neither
the program's end nor a signal to its group ends it early.

Rules: standard library only; runs under `python -I -S`, which starts in some 20 ms. The watcher is
there before the program starts, so there is no moment without it. The death signal of
prctl(PR_SET_PDEATHSIG) would reach the first process alone, and an engine has several.
"""

from __future__ import annotations

import os
import signal
import sys

#: exit status of a shell that cannot run a program
CANNOT_RUN = 127


def main(pipe: int, program: list[str]) -> None:
    """Leave a watcher behind and become *program*."""
    group = os.getpgrp()
    child = os.fork()
    if child == 0:
        # A grandchild belongs to nobody whom the program could wait for.
        if os.fork() == 0:
            _watch(pipe, group)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(pipe)
    try:
        os.execvp(program[0], program)  # noqa: S606 - argv comes from the adapter; no shell
    except OSError as error:
        sys.stderr.write(f"{program[0]}: {error.strerror}\n")
        os._exit(CANNOT_RUN)


def _watch(pipe: int, group: int) -> None:
    os.setsid()
    # A job that is asked to end signals everyone; the group must still be killed afterwards.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    while os.read(pipe, 1):
        pass
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        os._exit(0)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])

"""Find in an engine's log what it died of, as one sentence with what to do about it."""

from __future__ import annotations

import re
from signal import Signals

#: longer causes are cut; a status line has to hold them
CAUSE_CHARACTERS = 400

#: `(EngineCore pid=7) ERROR 11-20 20:27:19 [core.py:1510] ` before the text itself
_PREFIX = re.compile(r"^(\(\w+ pid=\d+\) )?([A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] )?")
#: the last line of a traceback, or of argparse
_ERROR = re.compile(r"^([\w.]*(Error|Exception)|[\w.-]+: error)(: .+)?$")
#: an error that only says that another one came before it
_ECHO = re.compile(r"See root cause above|EngineCore encountered an issue|EngineDeadError")

#: what to do, by what the cause says
_HINTS = {
    r"Repo id must be in the form|does not appear to have a file named config\.json": (
        "check that `weights` is a folder that the node can read"
    ),
    r"out of memory": "lower max_model_len or max_num_seqs, or ask for more GPUs",
    r"KV cache is needed|No available memory for the cache": (
        "lower max_model_len or raise kv_cache_mib"
    ),
    r"greater than the derived max_model_len": "lower max_model_len",
    r"unrecognized arguments|invalid choice": "check engine_args",
    r"Address already in use": "the port was taken meanwhile; another start chooses another one",
    r"Failed to infer device type|no NVIDIA driver|CUDA driver": (
        "the node's driver and the engine's build do not fit together"
    ),
}


def explain_failure(log: str) -> str:
    """Return the cause that the end of a log names, and what to do where that is known."""
    lines = [_PREFIX.sub("", line.rstrip(), count=1) for line in log.splitlines()]
    cause = _cause(lines)
    if len(cause) > CAUSE_CHARACTERS:
        cause = cause[: CAUSE_CHARACTERS - 1].rstrip() + "…"
    hint = next((hint for pattern, hint in _HINTS.items() if re.search(pattern, cause)), None)
    return f"{cause.rstrip('.')}; {hint}" if hint else cause.rstrip(".")


def describe_exit(exit_code: int) -> str:
    """Return an exit code of a child process in words; negative is a signal."""
    if exit_code >= 0:
        return f"exited with status {exit_code}"
    try:
        return f"killed by signal {-exit_code} ({Signals(-exit_code).name})"
    except ValueError:
        return f"killed by signal {-exit_code}"


def _cause(lines: list[str]) -> str:
    for number in range(len(lines) - 1, -1, -1):
        line = lines[number]
        if _ERROR.match(line) and not _ECHO.search(line):
            return f"{line} {_detail(lines[number + 1 :])}".rstrip()
    written = [line for line in lines if line.strip()]
    return written[-1].strip() if written else "the engine wrote nothing to its log"


def _detail(after: list[str]) -> str:
    """Return the first indented line after an error: pydantic says there what is wrong."""
    return after[0].strip() if after and after[0].startswith(("  ", "\t")) else ""

"""What one fake engine does: its command line as a frozen value."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from hpcserve.engines.fake.faults import NO_FAULTS, Faults
from hpcserve.errors import RequestError

#: the variable that carries the bearer key; never argv, which every user of the node can read
KEY_VARIABLE = "HPCSERVE_ENGINE_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Name, address, limits, timing and faults of one fake engine."""

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    #: bearer key that every route asks for; empty asks for none
    key: str = ""
    #: tokens of prompt and answer together
    max_model_len: int = 8192
    #: sequences in the running batch; the others wait
    max_num_seqs: int = 256
    #: from the start of prefill to the first token, without the prompt's own share
    ttft_ms: float = 0.0
    #: prompt tokens prefilled each second; 0 makes prefill free
    prefill_tokens_per_s: float = 0.0
    #: between two tokens of one sequence that runs alone
    itl_ms: float = 0.0
    #: added to `itl_ms` by every other running sequence
    itl_ms_per_seq: float = 0.0
    #: each delay is stretched by a uniform factor of 1 ± this
    jitter_ratio: float = 0.0
    seed: int = 0
    #: until then `/health` and all else answer 503
    load_s: float = 0.0
    #: time that streams get to finish after SIGTERM; 0 cuts them at once
    shutdown_timeout_s: float = 0.0
    #: interactive requests take slots from batch requests; otherwise priorities count for nothing
    interactive_first: bool = False
    #: file with the number of slots that batch may hold; empty: there is no such limit
    batch_slots_file: str = ""
    faults: Faults = NO_FAULTS


def parse_arguments(arguments: Sequence[str], *, key: str) -> Settings:
    """Return the settings of a command line; exit with 2 and a sentence when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="hpcserve fake-engine",
        description="Stand in for vLLM's HTTP server, with invented text and tunable timing.",
        epilog=f"The bearer key comes from the variable {KEY_VARIABLE}.",
    )
    add = parser.add_argument
    add("--served-model-name", dest="model", required=True)
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    add("--max-model-len", type=_positive, default=8192, help="tokens")
    add("--max-num-seqs", type=_positive, default=256, help="running at the same time")
    add("--ttft-ms", type=_duration, default=0.0)
    add("--prefill-tokens-per-s", type=_duration, default=0.0, help="0: prefill is free")
    add("--itl-ms", type=_duration, default=0.0)
    add("--itl-ms-per-seq", type=_duration, default=0.0, help="for each other running sequence")
    add("--jitter-ratio", type=_duration, default=0.0, help="0..1 of each delay")
    add("--seed", type=int, default=0)
    add("--load-s", type=_duration, default=0.0, help="503 until then")
    add("--shutdown-timeout", dest="shutdown_timeout_s", type=_duration, default=0.0)
    add("--interactive-first", action="store_true", help="chat takes slots from batch")
    add("--batch-slots-file", default="", help="holds the number of slots that batch may hold")
    add("--faults", type=_faults, default=NO_FAULTS, help="JSON as for POST /fake/faults")
    return Settings(**vars(parser.parse_args(arguments)), key=key)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def _duration(text: str) -> float:
    if not (number := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def _faults(text: str) -> Faults:
    try:
        return Faults.from_json(text)
    except RequestError as error:
        raise argparse.ArgumentTypeError(error.message) from error

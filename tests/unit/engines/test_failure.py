from __future__ import annotations

from pathlib import Path

import pytest

from hpcserve.engines.failure import CAUSE_CHARACTERS, describe_exit, explain_failure

#: ends of real logs of vLLM 0.32.0
LOGS = Path(__file__).parents[2] / "data" / "engines"


@pytest.mark.parametrize(
    ("log", "cause", "advice"),
    [
        ("absent_weights", "HFValidationError: Repo id must be", "`weights` is a folder"),
        ("little_kv_cache", "ValueError: To serve at least one request", "raise kv_cache_mib"),
        ("long_context", "max_model_len (1000000) is greater", "lower max_model_len"),
        ("unknown_flag", "unrecognized arguments: --no-such-flag", "check engine_args"),
        ("taken_port", "Address already in use", "another start chooses another one"),
    ],
)
def test_the_cause_is_found_behind_what_it_led_to(log: str, cause: str, advice: str) -> None:
    sentence = explain_failure((LOGS / f"{log}.log").read_text())
    assert cause in sentence
    assert sentence.endswith(advice) or advice in sentence
    assert "\n" not in sentence


def test_without_an_error_the_last_line_speaks() -> None:
    assert explain_failure("loading\nKilled\n\n") == "Killed"
    assert explain_failure("") == "the engine wrote nothing to its log"


def test_a_long_cause_is_cut() -> None:
    sentence = explain_failure("ValueError: " + "x" * 1000)
    assert len(sentence) == CAUSE_CHARACTERS
    assert sentence.endswith("…")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "exited with status 0"),
        (127, "exited with status 127"),
        (-9, "killed by signal 9 (SIGKILL)"),
        (-33, "killed by signal 33"),
    ],
)
def test_an_exit_code_is_told_in_words(code: int, words: str) -> None:
    assert describe_exit(code) == words

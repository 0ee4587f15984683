"""How fast an engine is: time to prefill and time between tokens, fitted from measurements.

A step of an engine with n running requests that hold k tokens of KV cache takes
`itl_base_s + itl_per_request_s * n + itl_per_kv_token_s * k`; a prompt of p tokens holds the engine
for `prefill_base_s + prefill_per_token_s * p`. The KV cache holds `kv_tokens`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """One engine on one kind of GPU."""

    prefill_base_s: float
    prefill_per_token_s: float
    itl_base_s: float
    itl_per_request_s: float
    itl_per_kv_token_s: float
    kv_tokens: int
    #: from the start of the job to READY: shortest and longest, s
    load_s: tuple[float, float]

    def prefill_s(self, tokens: float) -> float:
        """Return how long a prompt holds the engine."""
        return self.prefill_base_s + self.prefill_per_token_s * tokens

    def itl_s(self, running: float, kv_tokens: float) -> float:
        """Return the time of one step."""
        return (
            self.itl_base_s
            + self.itl_per_request_s * running
            + self.itl_per_kv_token_s * min(kv_tokens, self.kv_tokens)
        )

    def seats(self, tokens_each: float, ceiling: int) -> int:
        """Return how many requests of such a size run at once."""
        return max(1, min(ceiling, int(self.kv_tokens / max(1.0, tokens_each))))


#: Splitwise's measurements (Mutinifni/splitwise-sim, MIT), fitted by `fit`; 8B scaled by weights.
#: Load times are Chiron's for 8B; a 70B engine takes minutes.
PERFORMANCES: Mapping[str, Performance] = {
    "llama-8b-a100": Performance(
        prefill_base_s=0.005,
        prefill_per_token_s=0.00006,
        itl_base_s=0.0125,
        itl_per_request_s=0.00004,
        itl_per_kv_token_s=1.0e-7,
        kv_tokens=400_000,
        load_s=(15.0, 60.0),
    ),
    "llama-70b-a100": Performance(
        prefill_base_s=0.037,
        prefill_per_token_s=0.000245,
        itl_base_s=0.0495,
        itl_per_request_s=0.00033,
        itl_per_kv_token_s=0.0,
        kv_tokens=60_000,
        load_s=(90.0, 180.0),
    ),
    "llama-70b-h100": Performance(
        prefill_base_s=0.02,
        prefill_per_token_s=0.000118,
        itl_base_s=0.0325,
        itl_per_request_s=0.00025,
        itl_per_kv_token_s=0.0,
        kv_tokens=60_000,
        load_s=(90.0, 180.0),
    ),
}


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return intercept and slope of the least-squares line; two different x are needed."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    return mean_y - slope * mean_x, slope


def fit(
    like: Performance,
    prefills: Sequence[tuple[float, float]],
    steps: Sequence[tuple[float, float]],
) -> Performance:
    """Return *like* with the times of measurements.

    Args:
        like: gives what was not measured.
        prefills: tokens of a prompt, and s until its first token.
        steps: running requests, and s between two tokens of one.

    """
    prefill_base_s, prefill_per_token_s = line(prefills)
    itl_base_s, itl_per_request_s = line(steps)
    return replace(
        like,
        prefill_base_s=max(0.0, prefill_base_s),
        prefill_per_token_s=prefill_per_token_s,
        itl_base_s=itl_base_s,
        itl_per_request_s=itl_per_request_s,
        itl_per_kv_token_s=0.0,
    )

"""How many instances a rate needs: Little's law at the engine's own speed, and room for bursts.

With R instances each gets rate/R requests a second, whose prompts hold its engine for a part p of
the time; n = rate/R * output * itl(n) / (1 - p) requests are in flight on it. The smallest R is
taken whose n fits the slots with an eighth to spare, whose ITL and TTFT keep their promises. For
bursts that is divided by Theta, as the scaling policy does until it has measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil

from hpcserve.domain.model import Model
from hpcserve.errors import RefusedError, RequestError
from hpcserve.sim.flow import Shape
from hpcserve.sim.performance import PERFORMANCES, Performance

#: part of the time that prompts may hold an engine before they wait for one another
_PREFILL_MAX = 0.8
_FILL = 0.875
#: rounds in which requests in flight and latency find each other
_ROUNDS = 50
#: instances beyond which nobody plans with one command
_INSTANCES_MAX = 10_000
_PERIODS_S = {"s": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What a steady rate needs, and the same with room for bursts."""

    instances: int
    gpus: int
    instances_with_bursts: int
    gpus_with_bursts: int
    #: of one instance
    in_flight: float
    itl_ms: float
    ttft_s: float


def size(
    model: Model,
    performance: Performance,
    shape: Shape,
    *,
    rate: float,
    ttft_s: float,
    theta: float,
) -> Sizing:
    """Return the smallest number of instances that keeps the promises.

    Raises:
        RefusedError: no number does.

    """
    seats = performance.seats(shape.prompt + shape.output, model.max_num_seqs)
    prefill_s = performance.prefill_s(shape.prompt)
    if prefill_s > ttft_s:
        raise RefusedError(
            f"No number of GPUs gives a first token in {ttft_s:g} s: a prompt of "
            f"{shape.prompt:.0f} tokens alone takes {prefill_s:.2f} s.",
            should_retry=False,
        )
    for instances in range(max(1, ceil(rate * prefill_s / _PREFILL_MAX)), _INSTANCES_MAX):
        each = rate / instances
        busy = each * prefill_s
        in_flight = 0.0
        itl_s = performance.itl_s(0, 0) / (1 - busy)
        for _ in range(_ROUNDS):
            in_flight = min(each * shape.output * itl_s, 2.0 * seats)
            itl_s = performance.itl_s(in_flight, in_flight * shape.held) / (1 - busy)
        first_s = prefill_s * (1 + busy / (2 * (1 - busy)))
        if in_flight <= _FILL * seats and itl_s * 1000 <= model.itl_slo_ms and first_s <= ttft_s:
            with_bursts = ceil(instances / theta)
            gpus = model.nodes * model.gpus_per_node
            return Sizing(
                instances=instances,
                gpus=instances * gpus,
                instances_with_bursts=with_bursts,
                gpus_with_bursts=with_bursts * gpus,
                in_flight=round(in_flight, 1),
                itl_ms=round(itl_s * 1000, 1),
                ttft_s=round(first_s, 3),
            )
    raise RefusedError(
        f"{_INSTANCES_MAX} instances do not keep an ITL of {model.itl_slo_ms:g} ms at "
        f"{rate:g} requests/s; ask for less, or for a faster engine.",
        should_retry=False,
    )


def plan_rate(
    model: Model, engine: str, tokens: str, rate: str, ttft: str, *, theta: float
) -> dict[str, object]:
    """Return the answer to a question as it was typed.

    Raises:
        RequestError: a part of the question is none.
        RefusedError: no number of instances keeps the promises.

    """
    if engine not in PERFORMANCES:
        raise RequestError(
            f"--engine: {engine!r} is not known; choose one of {', '.join(PERFORMANCES)}."
        )
    try:
        prompt, output = (float(part) for part in tokens.split(":"))
        shape = Shape(prompt=prompt, output=output)
    except ValueError:
        raise RequestError(f"--tokens: {tokens!r} is not like 256:277.") from None
    if prompt < 0 or output < 1:
        raise RequestError(f"--tokens: {tokens!r} needs an answer of a token.")
    answer = size(
        model,
        PERFORMANCES[engine],
        shape,
        rate=per_s(rate),
        ttft_s=seconds(ttft),
        theta=theta,
    )
    return {"engine": engine, **asdict(answer)}


def per_s(text: str) -> float:
    """Return the requests a second of `5/s`, `300/min` or `5`."""
    number, _, period = text.partition("/")
    try:
        rate = float(number) / _PERIODS_S[period.strip() or "s"]
    except (ValueError, KeyError):
        raise RequestError(f"--rate: {text!r} is not like 5/s, 300/min or 1000/h.") from None
    if rate <= 0:
        raise RequestError(f"--rate: {text!r} is not above 0.")
    return rate


def seconds(text: str) -> float:
    """Return the seconds of `2s`, `500ms` or `2`."""
    number, factor = text.strip(), 1.0
    if number.endswith("ms"):
        number, factor = number[:-2], 0.001
    elif number.endswith("s"):
        number = number[:-1]
    try:
        value = float(number) * factor
    except ValueError:
        value = 0.0
    if value <= 0:
        raise RequestError(f"--ttft: {text!r} is not like 2s or 500ms.")
    return value

"""How many instances a rate needs."""

import pytest

from hpcserve.errors import RefusedError, RequestError
from hpcserve.sim.flow import Shape
from hpcserve.sim.performance import PERFORMANCES
from hpcserve.sim.sizing import per_s, plan_rate, seconds, size
from tests.builders import a_model

ENGINE = PERFORMANCES["llama-8b-a100"]
SHAPE = Shape(prompt=256, output=277)


def sized(rate, **fields):
    """Return the sizing of a model with 64 slots."""
    options = {"rate": rate, "ttft_s": 2.0, "theta": 0.34} | fields
    return size(a_model(max_num_seqs=64, gpus_per_node=2), ENGINE, SHAPE, **options)


def test_little_s_law_holds_for_the_answer():
    answer = sized(30.0)
    each = 30.0 / answer.instances
    assert answer.in_flight == pytest.approx(each * 277 * answer.itl_ms / 1000, rel=0.05)
    assert answer.in_flight <= 56
    assert answer.gpus == 2 * answer.instances


def test_one_instance_less_would_not_do():
    answer = sized(200.0)
    assert answer.instances > 3
    fewer = 200.0 / (answer.instances - 1)
    assert fewer * 277 * answer.itl_ms / 1000 > 56 or fewer * ENGINE.prefill_s(256) > 0.8


def test_bursts_take_what_theta_says():
    answer = sized(200.0, theta=0.5)
    assert answer.instances_with_bursts == 2 * answer.instances


def test_more_never_needs_less():
    counts = [sized(rate).instances for rate in (1, 10, 50, 100, 500)]
    assert counts == sorted(counts)


def test_what_no_gpu_can_do_is_refused():
    with pytest.raises(RefusedError, match=r"No number of GPUs .* prompt of 256 tokens"):
        sized(1.0, ttft_s=0.001)


@pytest.mark.parametrize(
    ("text", "rate"), [("5/s", 5.0), ("300/min", 5.0), ("36/h", 0.01), ("2", 2)]
)
def test_rates_are_read(text, rate):
    assert per_s(text) == pytest.approx(rate)


@pytest.mark.parametrize(("text", "value"), [("2s", 2.0), ("500ms", 0.5), ("3", 3.0)])
def test_durations_are_read(text, value):
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"rate": "5/d"}, "--rate"),
        ({"rate": "-1/s"}, "--rate"),
        ({"ttft": "soon"}, "--ttft"),
        ({"engine": "gpt"}, "--engine"),
        ({"tokens": "256"}, "--tokens"),
        ({"tokens": "256:0"}, "--tokens"),
    ],
)
def test_a_mistake_is_one_sentence(change, why):
    asked = {"engine": "llama-8b-a100", "tokens": "256:277", "rate": "5/s", "ttft": "2s"} | change
    with pytest.raises(RequestError, match=rf"^{why}: .*\.$"):
        plan_rate(a_model(), **asked, theta=0.34)

"""Estimates: what they cover, how wide they are, and what they do without evidence."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from statistics import median

import pytest

from hpcserve.domain.instance import InstanceState
from hpcserve.policy.estimate.arrival import capacity
from hpcserve.policy.estimate.cost import Cost, Prior, cost
from hpcserve.policy.estimate.finish import Capacity, Coming, Work, finish
from hpcserve.policy.estimate.history import STRETCHES_MAX, History, Stretch
from hpcserve.policy.estimate.why import why_not_more
from tests.builders import NOW, a_model, ago, ahead, an_instance

Lengths = Callable[[int, random.Random], list[float]]


def alike(n: int, chance: random.Random) -> list[float]:
    """A classification: answers of nearly the same length."""
    return [1 + chance.random() / 10 for _ in range(n)]


def independent(n: int, chance: random.Random) -> list[float]:
    """Free text: lengths vary more than their mean."""
    return [chance.lognormvariate(0, 1) for _ in range(n)]


def drifting(n: int, chance: random.Random) -> list[float]:
    """Documents in the order of a crawl: neighbours are alike over hundreds of lines."""
    keep, level, found = math.exp(-1 / 200), chance.gauss(0, 0.5), []
    for _ in range(n):
        level = keep * level + math.sqrt(1 - keep * keep) * chance.gauss(0, 0.5)
        found.append(math.exp(level) * chance.lognormvariate(0, 0.8))
    return found


def history_of(costs: list[float]) -> History:
    history = History()
    for cost_s in costs:
        history = history.add(Stretch(lines=1, output_tokens=3, instance_s=cost_s))
    return history


@pytest.mark.parametrize(
    ("lengths", "least", "widest"),
    # widest: median of p90 over what came true
    [(alike, 0.9, 1.15), (independent, 0.9, 1.3), (drifting, 0.8, 1.8)],
)
@pytest.mark.parametrize(("lines", "seen"), [(500, 64), (2000, 200), (2000, 1000)])
def test_the_p90_covers_what_comes_true(
    lengths: Lengths, least: float, widest: float, lines: int, seen: int
) -> None:
    chance = random.Random(7)
    prior, covered, wide = Prior.first(1.0), 0, []
    batches = 200
    for _ in range(batches):
        costs = lengths(lines, chance)
        said = cost(history_of(costs[:seen]), in_flight=0, prior=prior)
        rest = sum(costs[seen:]) / (lines - seen)
        prior = prior.learn(sum(costs) / lines, said.p50_s, rest)
        covered += rest <= said.p90_s
        wide.append(said.p90_s / rest)
    assert covered / batches >= least
    assert median(wide) <= widest


def test_the_textbook_bound_would_not_cover_a_drift() -> None:
    chance, covered, batches = random.Random(7), 0, 200
    for _ in range(batches):
        costs = drifting(2000, chance)
        seen, rest = costs[:200], costs[200:]
        mean = sum(seen) / len(seen)
        variance = sum((x - mean) ** 2 for x in seen) / len(seen)
        bound = mean + 1.645 * math.sqrt(variance / len(rest))
        covered += sum(rest) / len(rest) <= bound
    assert covered / batches < 0.65


def test_own_results_outweigh_a_guess_that_was_far_off() -> None:
    prior = Prior.first(1.0)
    blind = cost(History(), in_flight=0, prior=prior)
    assert (blind.p50_s, round(blind.p90_s, 1)) == (1.0, 3.6)
    learned = cost(history_of([0.01] * 64), in_flight=0, prior=prior)
    assert learned.p50_s == pytest.approx(0.01, rel=0.1)
    assert learned.p90_s < 0.02


def test_what_is_in_flight_is_not_yet_known() -> None:
    # 16 results while 16 run: the 16 shortest
    history, prior = history_of([0.01] * 16), Prior.first(1.0)
    assert cost(history, in_flight=16, prior=prior).p50_s == 1.0


def test_a_model_is_known_after_batches_that_agree() -> None:
    prior = Prior.first(1.0)
    for _ in range(20):
        prior = prior.learn(0.02, None, None)
    said = cost(History(), in_flight=0, prior=prior)
    assert said.p50_s == pytest.approx(0.02, rel=0.1)
    assert said.p90_s < 0.04


@pytest.mark.parametrize("n", [1, 16, 17, 33, 1000])
def test_a_history_stays_small_and_loses_nothing(n: int) -> None:
    history = history_of([float(i) for i in range(n)])
    assert len(history.closed) <= STRETCHES_MAX
    assert history.total == Stretch(lines=n, output_tokens=3 * n, instance_s=n * (n - 1) / 2)
    sizes = {stretch.lines for stretch in history.closed}
    assert max(sizes) <= 2 * min(sizes)


def test_work_ends_sooner_when_an_instance_comes() -> None:
    work = [Work(lines=100, cost=Cost(p50_s=1.0, p90_s=1.0))]
    alone = finish(work, Capacity(serving=1))
    helped = finish(work, Capacity(serving=1, coming=(Coming(p50_s=20, p90_s=40),)))
    late = finish(work, Capacity(serving=0, coming=(Coming(p50_s=20, p90_s=40),)))
    assert alone is not None
    assert (alone.p50_s, alone.p90_s, alone.instance_s) == (100, 100, 100)
    assert helped is not None
    assert (helped.p50_s, helped.p90_s) == (60, 70)
    assert late is not None
    assert (late.p50_s, late.p90_s) == (120, 140)
    assert finish(work, Capacity(serving=0)) is None


def test_uncertainties_of_work_and_start_add_up_like_independent_ones() -> None:
    work = [Work(lines=100, cost=Cost(p50_s=1.0, p90_s=1.4))] * 2
    said = finish(work, Capacity(serving=0, coming=(Coming(p50_s=10, p90_s=40),)))
    assert said is not None
    assert said.p50_s == 210
    assert said.p90_s == pytest.approx(210 + math.hypot(40, 40, 30))


def test_instances_on_their_way_are_judged_by_those_before() -> None:
    ended = [
        an_instance(f"e{n}", InstanceState.ENDED, requested_at=ago(1000), ready_at=ago(1000 - took))
        for n, took in enumerate((20, 30, 40))
    ]
    young = an_instance("young", InstanceState.QUEUED, requested_at=ago(25))
    old = an_instance("old", InstanceState.QUEUED, requested_at=ago(100))
    planned = an_instance("p", InstanceState.QUEUED, requested_at=NOW, expected_start_at=ahead(500))
    ready = an_instance("ready", ready_at=ago(560))
    other = an_instance("other", model="other")
    seen = capacity([young, old, planned, ready, other], ended, "m", now=NOW, first_s=600)
    assert seen.serving == 1
    assert seen.coming == (
        # of 20, 30, 40 and 40 s, two are longer than 25
        Coming(p50_s=15, p90_s=30),
        Coming(p50_s=50, p90_s=200),
        Coming(p50_s=500, p90_s=500),
    )


def test_a_model_that_never_ran_is_expected_as_the_configuration_says() -> None:
    assert capacity([], [], "m", now=NOW, first_s=600).coming == (Coming(p50_s=600, p90_s=1200),)


@pytest.mark.parametrize(
    ("live", "kwargs", "said"),
    [
        ([], {}, "the controller has asked for none yet"),
        ([], {"closed": "night"}, "the site is closed: night"),
        ([], {"trouble": "it failed 3 times"}, "it failed 3 times"),
        ([an_instance()], {"in_time": True}, "1 will be done in time"),
        (
            [an_instance()],
            {"wanted": "1 mixed: enough"},
            "the scaling policy wants 1 mixed: enough",
        ),
        ([an_instance("a"), an_instance("b")], {}, "the catalog allows 2 of m"),
        (
            [an_instance("q", InstanceState.QUEUED, job_reason="Resources")],
            {},
            "q waits in the queue of Slurm (Resources)",
        ),
        ([an_instance("l", InstanceState.LOADING)], {}, "l loads the model"),
    ],
)
def test_the_reason_for_no_more_instances_is_the_first_that_holds(
    live: list[object], kwargs: dict[str, object], said: str
) -> None:
    given = {"trouble": "", "closed": "", "in_time": None, "wanted": "", **kwargs}
    assert why_not_more(a_model(), live, **given) == said

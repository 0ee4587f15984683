"""What one line of a batch costs, in seconds of one instance, and how sure that is.

Cost is output length over token rate; a batch's own results measure the quotient. The textbook
bound (CLT over output lengths; QLM, Chiron) takes lines as independent and is far too sure where
the mean drifts: nominal 95 % cover 55 to 75 % of real chat traffic in the order of arrival. So:

- a batch is judged by its own results, as soon as there are some; its model's earlier batches are
  the prior, which is worth the more lines the better they agree;
- the spread is that between stretches of the history, not that between lines: a drift is in it;
- by how much the rest of earlier batches belied their beginning comes on top;
- what is in flight is subtracted from what has been learned, since short answers come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, hypot, log, log1p, sqrt

from hpcserve.policy.estimate.history import History

#: stretches like those seen that the rest of a batch is taken for: few means that a drift goes on
_AHEAD = 4
#: normal quantile of 0.9
_Z = 1.2816
#: part of a line in flight that is done, on average
HALF_DONE = 0.5
#: weight of a batch among those of its model
_ALPHA = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Instance-seconds of a line: the median, and what 0.9 of such batches stay below."""

    p50_s: float
    p90_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Prior:
    """What lines of one model have cost, batch by batch, on a logarithmic scale."""

    log_s: float
    variance: float
    #: mean square by which the rest of a batch cost other than its beginning had promised
    drift: float = 0.03

    @classmethod
    def first(cls, cost_s: float) -> Prior:
        """Return the prior of a model that never ran: a guess, good to a factor of e."""
        return cls(log_s=log(cost_s), variance=1.0)

    def learn(self, cost_s: float, promise_s: float | None, rest_s: float | None) -> Prior:
        """Return the prior after one more batch.

        Args:
            cost_s: of a line of this batch.
            promise_s: what its lines were to cost by its own first results; None: never said.
            rest_s: what those have cost that were open then; None: there were none.

        """
        off = log(cost_s) - self.log_s
        # the guess gives way faster than what was measured
        alpha = max(_ALPHA, self.variance / (self.variance + 1.0))
        drift = self.drift
        if promise_s is not None and rest_s is not None:
            drift += _ALPHA * (log(rest_s / promise_s) ** 2 - drift)
        return Prior(
            log_s=self.log_s + alpha * off,
            variance=max(0.01, (1 - alpha) * (self.variance + alpha * off * off)),
            drift=drift,
        )


def cost(history: History, *, in_flight: int, prior: Prior) -> Cost:
    """Return what the lines cost that are still open."""
    doubt = _Z * sqrt(prior.variance)
    total = history.total
    known = max(0, total.lines - in_flight)
    if not known or total.instance_s <= 0:
        return Cost(p50_s=exp(prior.log_s), p90_s=exp(prior.log_s + doubt))
    # a line is as uncertain as the first guess, a prior as much less so as batches agree
    weight = known / (known + 1 / prior.variance)
    # what is in flight has cost something too: half of a line on average
    mine_s = total.instance_s / (total.lines + in_flight * HALF_DONE)
    middle = weight * log(mine_s) + (1 - weight) * prior.log_s
    own = doubt
    if len(history.closed) > 1:
        costs = [stretch.cost_s for stretch in history.closed]
        own = log1p(_spread(costs) / total.cost_s)
    own = hypot(own, _Z * sqrt(prior.drift))
    return Cost(p50_s=exp(middle), p90_s=exp(middle + hypot(weight * own, (1 - weight) * doubt)))


def _spread(costs: Sequence[float]) -> float:
    """Return by how much the mean of what comes exceeds the mean of *costs*, with 0.9 certainty."""
    n = len(costs)
    mean = sum(costs) / n
    variance = sum((cost_s - mean) ** 2 for cost_s in costs) / (n - 1)
    return _t90(n - 1) * sqrt(variance * (1 / n + 1 / _AHEAD))


def _t90(freedom: int) -> float:
    """Return Student's quantile of 0.9 (Cornish and Fisher's expansion; 10 % low at 1)."""
    z3, z5 = _Z**3, _Z**5
    return _Z + (z3 + _Z) / (4 * freedom) + (5 * z5 + 16 * z3 + 3 * _Z) / (96 * freedom * freedom)

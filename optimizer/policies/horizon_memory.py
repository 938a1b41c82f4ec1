"""What the `horizon` policy learns while it runs: lengths, errors of predictions, waits of the recent past."""

from __future__ import annotations

import math

from optimizer.policies.horizon_rules import Belief, combined

WINDOW = 1000
"""Requests of the recent past."""
LEAST_HISTORY = 20
"""Finished requests before their lengths say anything; that many counts the spread of errors given beforehand."""
LEAST_SIGMA = 0.05
"""However alike the lengths of the past were, the next one may differ by so much."""


class Spread:
    """Mean and standard deviation of numbers that come one by one, and of so many expected ones before them.

    >>> spread = Spread(mean=0.0, deviation=0.5, weight=2)
    >>> for number in (1.0, 1.0): spread.add(number)
    >>> spread.mean, round(spread.deviation, 3)
    (0.5, 0.612)
    """

    __slots__ = ("_squares", "_weight", "mean")

    def __init__(self, mean: float, deviation: float, weight: float) -> None:
        self.mean, self._weight = mean, weight
        self._squares = weight * deviation**2

    def add(self, number: float) -> None:
        """Take in a number."""
        self._weight += 1
        step = number - self.mean
        self.mean += step / self._weight
        self._squares += step * (number - self.mean)

    @property
    def deviation(self) -> float:
        """Standard deviation."""
        return math.sqrt(self._squares / self._weight)


class LengthBeliefs:
    """Beliefs about output lengths, from predictions and from the lengths that were seen, each by its precision.

    Predictions are scored: their bias is taken out, and the worse they are, the less they count.

    Parameters
    ----------
    log_sigma
        Expected spread of the logarithm of true over predicted length, as predictors are measured.

    Examples
    --------
    >>> beliefs = LengthBeliefs(log_sigma=0.5)
    >>> [round(x, 2) for x in beliefs.of(100.0, 1, 2048, 2048)]
    [4.61, 0.5]
    >>> for length in [200] * 400: beliefs.learn(length, 100.0)
    >>> round(math.exp(beliefs.of(100.0, 1, 2048, 2048).mu))
    200
    """

    def __init__(self, log_sigma: float) -> None:
        self._errors = Spread(0.0, log_sigma, LEAST_HISTORY)
        self._lengths = Spread(0.0, 0.0, 0)
        self._seen = 0

    def of(self, estimate: float | None, low: int, high: int, cap: int) -> Belief:
        """Give the belief about a new request.

        Parameters
        ----------
        estimate
            Point prediction in tokens; None: there is none.
        low, high
            The length is known to lie in [low, high]; equal: known exactly.
        cap
            What the client asked for at most: where nothing else is known, an eighth of it is expected.
        """
        if low == high:
            return Belief(math.log(low), 0.0)
        beliefs = []
        if estimate is not None:
            bias = self._errors.mean
            beliefs.append(
                Belief(math.log(max(estimate, 1.0)) + bias, max(self._errors.deviation, LEAST_SIGMA))
            )
        if self._seen >= LEAST_HISTORY:
            beliefs.append(Belief(self._lengths.mean, max(self._lengths.deviation, LEAST_SIGMA)))
        if not beliefs:
            return Belief(math.log(max(cap / 8, 1.0)), 1.0)
        mu, sigma = combined(beliefs)
        return Belief(min(max(mu, math.log(low)), math.log(high)), sigma)

    def learn(self, length: int, estimate: float | None) -> None:
        """Take in the length of a finished request, and what was predicted."""
        logarithm = math.log(length)
        self._seen += 1
        self._lengths.add(logarithm)
        if estimate is not None:
            self._errors.add(logarithm - math.log(max(estimate, 1.0)))

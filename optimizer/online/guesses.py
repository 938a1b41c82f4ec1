"""Predictors that start from a number: what came with the request, or the truth itself for experiments.

The length is log-normal about the number, and what is said of the rest once tokens are out is conditioned on them.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log, sqrt
from statistics import NormalDist
from zlib import crc32

from optimizer.online.messages import Request
from optimizer.problem.columns import MOST_TOKENS

_NORMAL = NormalDist()
_LEAST = 1e-6
_LEAST_SIGMA = 0.01
_MOST_SIGMA = 5.0
_WILD = 5.0
"""A prediction that is off by so much, as a logarithm, says nothing of the others."""


def _log(tokens: float) -> float:
    """Give the logarithm of a prediction; none is believed beyond what an engine can hold."""
    return log(min(max(tokens, 1.0), MOST_TOKENS))


def _longer(mu: float, sigma: float, generated: int, q: float) -> float:
    """Give a quantile of a log-normal length, given that it is longer than what is out."""
    if not generated:
        return max(1.0, exp(mu + sigma * _NORMAL.inv_cdf(q)))
    below = _NORMAL.cdf((log(generated) - mu) / sigma)
    # Far beyond all that was predicted the law says nothing: up to half as much again.
    if below > 1 - _LEAST:
        return generated * (1 + 0.5 * q) + 1
    return max(generated + 1.0, exp(mu + sigma * _NORMAL.inv_cdf(below + q * (1 - below))))


class Given:
    """The prediction that comes with the request, as a log-normal law that is learned.

    The logarithm of the length is regressed on that of the prediction: where predictions are noisy, lengths lie nearer to
    their mean than predictions do, and biased ones are off by a factor.

    Parameters
    ----------
    log_sigma
        Spread to start from, where the request names none.
    memory
        Over how many requests the law is learned.

    Examples
    --------
    >>> given = Given()
    >>> request = Request("a", 10, predicted_tokens=100.0, log_sigma=0.5)
    >>> round(given.quantile(request, 0, 0.5)), round(given.quantile(request, 150, 0.5))
    (100, 187)
    """

    name = "given"
    _prior = 30.0
    """Requests that the belief in predictions as they are is worth."""

    def __init__(self, log_sigma: float = 0.7, memory: int = 1000) -> None:
        self._memory = memory
        self._seen = 0
        self._mean = self._bias = self._spread = self._shared = 0.0
        self._variance = log_sigma**2

    def quantile(self, request: Request, generated: int, q: float) -> float | None:
        """Give a quantile of the law, given that the output is longer than what is out."""
        if request.predicted_tokens is None:
            return None
        mu, sigma = self._centre(_log(request.predicted_tokens)), self._sigma(request)
        return _longer(mu, sigma, generated, q)

    def _centre(self, x: float) -> float:
        """Give the median of the logarithm of the length where that of the prediction is x."""
        n, prior = self._seen, self._prior
        slope = (prior + n * self._shared) / (prior + n * self._spread)
        return x + self._bias * n / (n + prior) + (slope - 1) * (x - self._mean if n else 0.0)

    def _sigma(self, request: Request) -> float:
        if request.log_sigma is None or self._seen >= 2 * self._prior:
            return max(sqrt(self._variance), _LEAST_SIGMA)
        return min(max(request.log_sigma, _LEAST_SIGMA), _MOST_SIGMA)

    def observe(self, request: Request, length: int) -> None:
        """Learn from a length."""
        if request.predicted_tokens is None:
            return
        x, y = _log(request.predicted_tokens), log(length)
        if abs(y - x) > _WILD:
            return
        error = y - self._centre(x)
        self._seen = min(self._seen + 1, self._memory)
        self._variance += (error * error - self._variance) / (self._seen + self._prior)
        rate = 1 / self._seen
        dx, dy = x - self._mean, y - self._mean - self._bias
        self._mean += rate * dx
        self._bias += rate * (y - x - self._bias)
        self._spread += rate * ((1 - rate) * dx * dx - self._spread)
        self._shared += rate * ((1 - rate) * dx * dy - self._shared)

    def to_document(self) -> object:
        """Give what it has learned."""
        return [self._seen, self._mean, self._bias, self._spread, self._shared, self._variance]

    def load(self, document: object) -> None:
        """Take it up."""
        assert isinstance(document, list)
        self._seen = int(document[0])
        numbers = [float(value) for value in document[1:]]
        self._mean, self._bias, self._spread, self._shared, self._variance = numbers


class Oracle:
    """The truth, blurred: for experiments on what a prediction is worth.

    Parameters
    ----------
    truth
        Gives the output tokens of a request.
    log_sigma
        Standard deviation of the error of the logarithm; 0: the truth.
    seed
        Of the errors: that of a request depends on it and on the request's id alone.

    Examples
    --------
    >>> Oracle(lambda request: 300).quantile(Request("a", 10), 0, 0.5)
    300.0
    >>> round(Oracle(lambda request: 300, log_sigma=0.5, seed=1).quantile(Request("a", 10), 0, 0.5))
    436
    """

    name = "oracle"

    def __init__(self, truth: Callable[[Request], int], log_sigma: float = 0.0, seed: int = 0) -> None:
        self._truth, self._sigma, self._seed = truth, log_sigma, seed

    def quantile(self, request: Request, generated: int, q: float) -> float | None:
        """Give a quantile of the law, given that the output is longer than what is out."""
        # A uniform number from the id: the same in every process, unlike `hash`.
        u = (crc32(f"{self._seed}:{request.id}".encode()) + 0.5) / 2**32
        guess = log(self._truth(request)) + self._sigma * _NORMAL.inv_cdf(u)
        if not self._sigma:
            return max(round(exp(guess), 6), generated + 1.0)
        return _longer(guess, self._sigma, generated, q)

    def observe(self, request: Request, length: int) -> None:
        """Learn nothing."""

    def to_document(self) -> object:
        """Give nothing."""
        return None

    def load(self, document: object) -> None:
        """Take nothing up."""

"""Rules of the `horizon` policy on lengths, memory and order: pure functions of predictions and of what is visible.

Everything here takes plain numbers, so that any serving loop can use it. Times are in seconds, sizes in tokens.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from optimizer.policies.peak import future_peak

Array = NDArray[np.float64]

HARDLY = 2.5
"""Standard deviations of log-length that hardly any output exceeds."""
EARNED, MOST_CREDIT = 0.65, 3.0
"""In TPOT levels: what a decoded token earns towards stalls, and the most that can be saved up."""
_OVERTAKEN, LARGE = 1 / 3, 0.98
"""Where long waits are usual, requests with a large work, this quantile, are put back by this share of them."""
EXEMPT_S = 600.0
"""By how much those whose wait is not protected stand back: they are served when nobody else waits."""


# ---- how long an output will be


class Belief(NamedTuple):
    """A log-normal belief about an output length: mean and standard deviation of its logarithm."""

    mu: float
    sigma: float


def combined(beliefs: Iterable[Belief]) -> Belief:
    """Give what independent beliefs say together: each counts by its precision.

    >>> combined([Belief(4.0, 0.5), Belief(5.0, 0.5)])
    Belief(mu=4.5, sigma=0.3535533905932738)
    """
    weighted = total = 0.0
    for mu, sigma in beliefs:
        if sigma == 0:
            return Belief(mu, 0.0)
        weighted += mu / sigma**2
        total += 1 / sigma**2
    return Belief(weighted / total, total**-0.5)


def remaining_tokens(belief: Belief, generated: int) -> float:
    """Give the expected tokens still to come of a request that has generated so many and goes on.

    The mean of a log-normal length L, given L > generated, less what is generated; at least 1.

    Examples
    --------
    A request that has gone on for longer than was believed still has much to come:

    >>> [round(remaining_tokens(Belief(math.log(100), 0.5), g)) for g in (0, 50, 100, 400)]
    [113, 70, 57, 70]
    """
    mu, sigma = belief
    if sigma == 0 or generated <= 0:
        return max(math.exp(mu + sigma * sigma / 2) - generated, 1.0)
    z = (mu - math.log(generated)) / sigma
    if z < -6:  # so far out the quotient below is 0 / 0; its limit is a Pareto tail's
        return max(generated * sigma / (-z - sigma), 1.0)
    beyond = math.erfc(-(z + sigma) / math.sqrt(2)) / math.erfc(-z / math.sqrt(2))
    return max(math.exp(mu + sigma * sigma / 2) * beyond - generated, 1.0)


def survival(mu: Array, sigma: Array, generated: Array, ahead: float) -> Array:
    """Give the chance that each request still goes on so many tokens later.

    Parameters
    ----------
    mu, sigma, generated
        By request: its belief, and what it has generated, shape (requests,).
    ahead
        Tokens from now, at least 0.
    """
    spread = np.maximum(sigma, 1e-3)
    now = _beyond((np.log(np.maximum(generated, 0.5)) - mu) / spread)
    then = _beyond((np.log(np.maximum(generated + ahead, 0.5)) - mu) / spread)
    chance: Array = np.minimum(then / np.maximum(now, 1e-12), 1.0)
    return chance


def _beyond(z: Array) -> Array:
    """Give the upper tail of the normal distribution, to 3e-4 (tanh form, Page 1977)."""
    tail: Array = 0.5 * (1 - np.tanh(math.sqrt(2 / math.pi) * z * (1 + 0.044715 * z * z)))
    return tail


AHEAD = (0, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
"""Decode steps from now at which the future use of KV is looked at."""


def kv_is_safe(
    held: Array, mu: Array, sigma: Array, generated: Array, capacity: float, deviations: float
) -> bool:
    """Say whether requests that all decode on stay within the KV cache, at a confidence.

    At each moment ahead the use is a sum of independent terms, held + ahead for each request that still goes
    on; its mean plus so many standard deviations must stay within the capacity. If all lengths are known, it is the
    peak that must (`future_peak`).

    Parameters
    ----------
    held
        By request: the tokens it will hold once its prompt is computed, shape (requests,).
    mu, sigma, generated
        By request, as in `survival`.
    capacity
        In tokens.
    deviations
        1.64 for a confidence of 95 % at each moment.

    Examples
    --------
    Nine requests of 10 prompt tokens and some 20 output tokens would need 270 tokens if all ended at once:

    >>> nine = np.ones(9)
    >>> at = lambda capacity: kv_is_safe(10 * nine, math.log(20) * nine, 0.5 * nine, 0 * nine, capacity, 1.64)
    >>> at(300), at(150)
    (True, False)
    """
    if not sigma.any():
        return future_peak(zip(held, np.maximum(np.exp(mu) - generated, 1.0), strict=True)) <= capacity
    for ahead in AHEAD:
        on = survival(mu, sigma, generated, ahead)
        size = held + ahead
        mean = float(on @ size)
        if mean + deviations * math.sqrt(float((on * (1 - on)) @ (size * size))) > capacity:
            return False
        if mean < 1:
            break
    return True


# ---- who goes first


def place_s(arrival_s: float, work_s: float, patience_s: float) -> float:
    """Give a request's place in the order, as a moment: its arrival, put back by the mean of its work and the patience.

    The mean is the geometric one. So requests are served in order of arrival, but a small one overtakes a larger
    one that came up to some seconds before; the delay that this can cost is bounded by the request's own size.

    >>> place_s(arrival_s=10.0, work_s=0.04, patience_s=64.0), place_s(arrival_s=8.5, work_s=0.25, patience_s=64.0)
    (11.6, 12.5)
    """
    return arrival_s + math.sqrt(work_s * patience_s)


def patience(patience_s: float, usual_wait_s: float, large_work_s: float) -> float:
    """Give the patience for `place_s`: more where long waits are usual, so that large requests are put back by a part of them.

    Parameters
    ----------
    patience_s
        The least.
    usual_wait_s
        The longest waits of the recent past.
    large_work_s
        The `LARGE` quantile of the works of the recent past; 0: nothing is known.

    Examples
    --------
    >>> patience(48.0, 9.0, 0.1), patience(48.0, 30.0, 1.0), patience(48.0, 30.0, 0.0)
    (90.0, 100.0, 48.0)
    """
    if large_work_s <= 0:
        return patience_s
    back_s = _OVERTAKEN * usual_wait_s
    return max(patience_s, back_s * back_s / large_work_s)


def in_time(items: Iterable[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Choose the most requests that one server can finish in time, in the order that does it.

    Parameters
    ----------
    items
        (time left until the deadline, work, request) of each, in one unit of time.

    Notes
    -----
    Moore and Hodgson (1968): earliest deadline first; whenever one comes too late, the largest so far is left out.

    Examples
    --------
    >>> [request for _, _, request in in_time([(4, 3, 0), (5, 3, 1), (6, 2, 2)])]
    [1, 2]
    """
    kept: list[tuple[float, float, int]] = []
    end = 0.0
    largest: list[tuple[float, int]] = []
    left_out: set[int] = set()
    for item in sorted(items):
        left, work, request = item
        kept.append(item)
        heapq.heappush(largest, (-work, request))
        end += work
        if end > left:
            size, loser = heapq.heappop(largest)
            left_out.add(loser)
            end += size
    return [item for item in kept if item[2] not in left_out]


def pressure(oldest_wait_s: float, usual_wait_s: float) -> float:
    """Say from 0 to 1 how near the longest wait of now is to the longest ones of the recent past.

    >>> pressure(0.2, 1.0), pressure(0.75, 1.0), pressure(3.0, 1.0), pressure(3.0, 0.0)
    (0.0, 0.5, 1.0, 1.0)
    """
    if usual_wait_s <= 0:
        return float(oldest_wait_s > 0)
    return min(max(2 * oldest_wait_s / usual_wait_s - 1, 0.0), 1.0)

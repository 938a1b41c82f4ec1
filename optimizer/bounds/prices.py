"""Lagrangian bounds: a price on every round's memory proves how small a sum of completions can be.

Let f be any non-negative table on the blocks that one request can hold, and R(f) the most that requests which fit
together can sum up to in one round. Then sum_i f(held by i) <= R(f) in every round of every schedule, and with prices
y_t >= 0 on these inequalities every schedule satisfies

    sum_i w_i C_i >= sum_i min_t [ w_i (t + o_i) + sum_j y_{t+j} f(held_i(j)) ] - R(f) sum_t y_t.

The identity gives the plain memory row, R = capacity; a table that is 1 above half of the capacity says that two such
requests never meet; the table of ones says what the seats say. R is computed by a knapsack, never taken on trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from optimizer.problem.columns import Ints
from optimizer.problem.ramps import Ramps


@dataclass(frozen=True, slots=True, eq=False)
class Priced:
    """One table and its prices.

    Attributes
    ----------
    table
        f by blocks held, 0..capacity, whole numbers >= 0 with f(0) = 0; None: the identity.
    prices
        By round from 0 on, whole numbers >= 0; 0 beyond the end.
    """

    table: Ints | None
    prices: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Prices:
    """A certificate: prices in units of 1 / `denominator`."""

    rows: Sequence[Priced]
    denominator: int


def most(table: Ints | None, ramps: Ramps) -> int:
    """Give the largest sum of table values of requests that are in one round together: an unbounded knapsack.

    >>> ramps = Ramps.of([3, 3], [1, 1], capacity=5)
    >>> most(np.array([0, 0, 0, 1, 1, 1]), ramps), most(None, ramps)
    (1, 5)
    """
    if table is None:
        return ramps.capacity
    best = [0] * (ramps.capacity + 1)
    useful = [(held, int(table[held])) for held in range(1, ramps.capacity + 1) if table[held]]
    # With seats the number of requests counts too; the table of ones is then bounded by them.
    for room in range(1, ramps.capacity + 1):
        best[room] = max((value + best[room - held] for held, value in useful if held <= room), default=0)
        best[room] = max(best[room], best[room - 1])
    return min(best[-1], ramps.seats * max((value for _, value in useful), default=0))


def price_bound(ramps: Ramps, certificate: Prices) -> Fraction:
    """Compute the bound that prices prove, exactly.

    Parameters
    ----------
    ramps
        The problem.
    certificate
        Any prices: good ones make a good bound, no prices make a wrong one.

    Returns
    -------
    Fraction
        At most the weighted sum of completion rounds of any schedule.

    Raises
    ------
    ValueError
        If a price or a table value is negative, or a table has another length than capacity + 1.

    Examples
    --------
    Two requests that never meet: the second ends two rounds after the first.

    >>> ramps = Ramps.of([3, 3], [2, 2], capacity=5)
    >>> never = np.array([0, 0, 0, 1, 1, 1])
    >>> price_bound(ramps, Prices([Priced(never, np.array([1, 1]))], denominator=1))
    Fraction(6, 1)
    """
    horizon = max((len(row.prices) for row in certificate.rows), default=0)
    horizon = max(horizon, int(ramps.arrival.max()) if len(ramps) else 0)
    # Beyond the last price a later start costs more and saves nothing.
    starts = np.arange(horizon + 1)
    kinds, kind = np.unique(np.stack([ramps.prompt, ramps.rounds], axis=1), axis=0, return_inverse=True)
    longest = int(ramps.rounds.max())
    denominator = int(certificate.denominator)
    charge = np.zeros((len(kinds), horizon + 1), dtype=object if _large(certificate, ramps) else np.int64)
    rent = 0
    for row in certificate.rows:
        table = None if row.table is None else np.asarray(row.table, np.int64)
        if table is not None and (len(table) != ramps.capacity + 1 or (table < 0).any() or table[0]):
            raise ValueError("a table needs capacity + 1 whole numbers >= 0, the first of them 0")
        prices = np.asarray(row.prices)
        if (prices < 0).any():
            raise ValueError("a price is negative")
        padded = np.zeros(horizon + longest + 1, dtype=charge.dtype)
        padded[: len(prices)] = prices
        for k, (prompt, rounds) in enumerate(kinds.tolist()):
            held = -(-(prompt + np.arange(rounds)) // ramps.block_tokens)
            value = (held if table is None else table[held]).astype(charge.dtype)
            charge[k] += np.correlate(padded[: horizon + rounds], value, mode="valid")
        rent += most(table, ramps) * int(prices.sum())
    total = Fraction(-rent, denominator)
    for k, weight, rounds, arrival in zip(
        kind.ravel().tolist(), ramps.weight.tolist(), ramps.rounds.tolist(), ramps.arrival.tolist(), strict=True
    ):
        exact = Fraction(weight)
        cost = (starts[arrival:] + rounds) * (exact.numerator * denominator) + charge[k, arrival:] * exact.denominator
        total += Fraction(int(cost.min()), exact.denominator * denominator)
    return total


def _large(certificate: Prices, ramps: Ramps) -> bool:
    """Whether 64 bits might not hold the sums."""
    value = sum(
        int(np.asarray(row.prices, object).sum()) * (ramps.capacity if row.table is None else int(max(row.table)))
        for row in certificate.rows
    )
    end = sum(len(row.prices) for row in certificate.rows) + int(ramps.rounds.max()) + int(ramps.arrival.max())
    largest = max(Fraction(w).numerator * Fraction(w).denominator for w in ramps.weight.tolist())
    return (value + end * certificate.denominator) * largest >= 2**62

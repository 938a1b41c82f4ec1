"""Good prices for large instances: the fluid relaxation, solved by columns.

Many small ramps behave like a fluid, and the time-indexed linear program of arXiv 2502.07115 is nearly tight then.
Its dual, one price per round, is what `price_bound` takes. The program is too large to be written down. So prices are
linear between knots, and columns are made when they are needed: at given prices each request picks its cheapest
start (`Charges`), the starts of similar requests are a column, and a small program over the columns so far gives
the next prices (Dantzig-Wolfe). Those jump about, so the search goes half way from the best so far to them (Wentges,
"Weighted Dantzig-Wolfe decomposition for linear mixed-integer programming", 1997).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from optimizer.bounds.charges import Charges
from optimizer.bounds.fluid_master import Knots, Master
from optimizer.certificates.prices import Priced, Prices
from optimizer.problem.columns import Floats, Ints
from optimizer.problem.ramps import Ramps

_KNOTS = (100, 200)
"""Knots of the prices, one search after the other: few are found fast, and start the next."""
_GROUPS = 60
_MOST_KINDS = 4000
_MOST_STARTS = 4000
_TOLERANCE = 1e-4
_FINEST = 2**32


@dataclass(frozen=True, slots=True, eq=False)
class Fluid:
    """Prices, and the fluid schedule that goes with them.

    Attributes
    ----------
    certificate
        What `price_bound` turns into a bound, exactly.
    bound
        That bound in floating point.
    starts, shares
        By column and request: a starting round, and the share of the request that starts then. The shares of
        a request sum up to 1.
    """

    certificate: Prices
    bound: float
    starts: Ints
    shares: Floats

    def quantile(self, share: float | Floats) -> Ints:
        """Give the round of each request by which this share of it, in (0, 1], has started; shares one by one, too."""
        order = np.argsort(self.starts, axis=0, kind="stable")
        started = np.cumsum(np.take_along_axis(self.shares, order, 0), axis=0)
        row = np.minimum((started < share - 1e-9).sum(axis=0), len(order) - 1)
        every = np.arange(order.shape[1])
        return np.asarray(self.starts[order[row, every], every], np.int64)


def fluid_prices(
    ramps: Ramps,
    start: Ints,
    *,
    time_limit_s: float = 20.0,
    on_bound: Callable[[Fluid], bool | None] | None = None,
) -> Fluid:
    """Find prices whose bound is near the best that prices of memory and seats can prove.

    Parameters
    ----------
    ramps
        The problem; at least one request.
    start
        Starting rounds of a feasible schedule, the better the faster.
    time_limit_s
        Wall time for the search, > 0; it stops by itself when the bound is within 0.01 % of what
        prices with these knots can reach. The last evaluation, on all requests and rounds, comes after it.
    on_bound
        Called with each better result; True asks to stop.

    Returns
    -------
    Fluid
        The best found; the same each time unless the limit was reached.

    Examples
    --------
    Ten equal requests, two at a time; the sum of these completions is 120:

    >>> ramps = Ramps.of([4] * 10, [4] * 10, capacity=14)
    >>> fluid = fluid_prices(ramps, np.arange(10) // 2 * 4)
    >>> 85 < fluid.bound <= 120
    True
    """
    deadline = time.monotonic() + time_limit_s
    kinds, count, kind = _kinds(ramps)
    horizon = int((start + ramps.rounds).max())
    picked = np.zeros(len(kinds), np.int64)
    picked[kind] = np.maximum(start, kinds.arrival[kind])
    search = _Search(kinds, count, horizon, picked)
    prices = guess = _waiting(ramps, start, horizon)
    full = Charges(ramps, horizon)
    best: Fluid | None = None
    for number in _KNOTS:
        prices, shares = search.run(Knots.of(number, guess[0]), prices, deadline)
        certificate, bound = _certified(ramps, full, prices)
        if best is None or bound > best.bound:
            best = Fluid(certificate, bound, np.array(search.columns)[:, kind], shares[:, kind])
            if on_bound is not None and on_bound(best):
                break
        if time.monotonic() >= deadline:
            break
    assert best is not None
    return best


class _Search:
    """Columns and the best prices so far."""

    def __init__(self, kinds: Ramps, count: Floats, horizon: int, start: Ints) -> None:
        self.kinds, self.count, self.horizon = kinds, count, horizon
        self.charges = Charges(kinds, horizon, stride=max(1, horizon // _MOST_STARTS))
        groups = min(_GROUPS, len(kinds))
        self.group = np.empty(len(kinds), np.int64)
        self.group[np.lexsort((kinds.prompt, kinds.rounds))] = np.arange(len(kinds)) * groups // len(kinds)
        self.members = [np.flatnonzero(self.group == g) for g in range(groups)]
        self.seated = kinds.seats < count.sum()
        # Starts after all prices use nothing: with them the program always has a solution.
        self.columns = [np.maximum(kinds.arrival, horizon), start]

    def run(self, knots: Knots, prices: Floats, deadline: float) -> tuple[Floats, Floats]:
        """Raise prices (by round, a row per resource) until no better ones are in sight; also give the shares."""
        limits = np.array([self.kinds.capacity, self.kinds.seats][: 1 + self.seated], np.float64)
        master = Master(len(self.members), knots, limits)
        for column in self.columns:
            self._add(master, knots, column)
        best = knots.at(prices[: len(limits)])
        value, column = self._value(knots.spread(best), limits)
        self.columns.append(column)
        self._add(master, knots, column)
        while time.monotonic() < deadline:
            answer = master.solve(deadline - time.monotonic())
            if answer is None or answer.value - value <= _TOLERANCE * answer.value:
                break
            tried = (best + answer.prices) / 2
            proved, column = self._value(knots.spread(tried), limits)
            if proved > value:
                best, value = tried, proved
            self.columns.append(column)
            self._add(master, knots, column)
        return knots.spread(best), master.shares()[:, self.group]

    def _value(self, prices: Floats, limits: Floats) -> tuple[float, Ints]:
        cost, start = self.charges.least(*prices)
        return float((self.count * cost).sum() - (limits * prices.sum(axis=1)).sum()), start

    def _add(self, master: Master, knots: Knots, start: Ints) -> None:
        ends = self.count * self.kinds.weight * (start + self.kinds.rounds)
        cost = np.array([ends[members].sum() for members in self.members])
        used = [self.charges.usage(members, start, self.count)[: 1 + self.seated] for members in self.members]
        master.add(cost, np.stack([knots.gather(np.stack(rows)) for rows in used]))


def _kinds(ramps: Ramps) -> tuple[Ramps, Floats, Ints]:
    """Give requests that stand for similar ones, how many each stands for, and the one of each request."""
    n = len(ramps)
    if n <= _MOST_KINDS:
        return ramps, np.ones(n), np.arange(n)
    keys = [_ranked(ramps.arrival, 20), _ranked(ramps.weight, 5), _ranked(ramps.prompt, 40), ramps.rounds]
    kind = np.empty(n, np.int64)
    kind[np.lexsort(keys[::-1])] = np.arange(n) * _MOST_KINDS // n
    count = np.bincount(kind).astype(np.float64)

    def mean(values: Ints | Floats) -> Floats:
        return np.asarray(np.bincount(kind, values) / count, np.float64)

    kinds = Ramps.of(
        np.rint(mean(ramps.prompt)),
        np.rint(mean(ramps.rounds)),
        capacity=ramps.capacity,
        arrival=np.rint(mean(ramps.arrival)),
        weight=mean(ramps.weight),
        block_tokens=ramps.block_tokens,
        seats=ramps.seats,
    )
    return kinds, count, kind


def _ranked(values: Ints | Floats, parts: int) -> Ints:
    """Cut values into parts of about as many each; equal ones stay together."""
    cuts = np.unique(np.quantile(values, np.arange(1, parts) / parts))
    return np.searchsorted(cuts, values, side="right")


def _waiting(ramps: Ramps, start: Ints, horizon: int) -> Floats:
    """Guess prices: with one round's memory more, all who wait in a schedule would start one round sooner."""
    change = np.zeros(horizon + 1)
    np.add.at(change, ramps.arrival, ramps.weight)
    np.add.at(change, start, -ramps.weight)
    memory = np.maximum(np.cumsum(change)[:horizon], 0.0) / ramps.capacity
    return np.stack([memory, np.zeros(horizon)])


def _certified(ramps: Ramps, full: Charges, prices: Floats) -> tuple[Prices, float]:
    """Make prices whole numbers, and evaluate those on all requests and rounds."""
    limits = np.array([ramps.capacity, ramps.seats][: len(prices)], np.float64)
    largest = float((limits * prices.sum(axis=1)).sum()) + 2 * full.horizon + 1
    denominator = 2 ** int(np.log2(min(_FINEST, 2**59 / largest)))
    whole = np.rint(prices * denominator).astype(np.int64)
    ones = np.ones(ramps.capacity + 1, np.int64)
    ones[0] = 0
    rows = [Priced(table, row) for table, row in zip((None, ones), whole, strict=False)]
    used = whole / denominator
    cost, _ = full.least(*used)
    return Prices(rows, denominator), float(cost.sum() - (limits * used.sum(axis=1)).sum())

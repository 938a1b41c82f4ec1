"""Prices of memory and of cliques of starts, from the time-indexed linear program with cutting planes.

    min  sum_it w_i (t + o_i) x_it     x_it: part of request i that starts in round t
    s.t. sum_t x_it = 1                    for every i
         sum_it held_i(u - t) x_it <= M    for every round u (memory; seats likewise)
         sum_(i,t) in K  x_it <= 1         for every clique K of starts

With memory rows alone the program is weak where a request needs much of the memory: ramps are cut into slices that
fill it without a gap. Two requests that together exceed the memory cannot complete near each other, and this is what
cliques say. Rows are added when they are violated. The dual solution, rounded down, is a certificate for any schedule;
which starts and rows the program knows decides how good it is, not whether it holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from optimizer.bounds.cliques import Grower, Grown
from optimizer.bounds.time_program import Duals, TimeProgram
from optimizer.certificates.cliques import Clique
from optimizer.certificates.prices import Priced, Prices, price_bound
from optimizer.problem.columns import Floats, Ints
from optimizer.problem.ramps import Ramps

_DENOMINATOR = 10**6
_MOST_COLUMNS = 120_000
"""With more starts than this, the program knows only every second one, and so on."""
_FIRST_ROWS = 100
"""Rows of memory, and cliques, to begin with."""
_GROWN = 120
"""Cliques that are grown in each pass,"""
_KEPT = 40
"""and of the violated ones, how many become rows."""
_SOME = 1e-6
_VIOLATED = 1e-3
_OVER = 1e-2
_STALLED = (10, 2e-4)
"""Stop when so many passes have raised the bound by less than this part of it."""
_CHECK_EVERY = 5


@dataclass(frozen=True, slots=True, eq=False)
class CliquePrices:
    """Prices, and what they prove.

    Attributes
    ----------
    certificate
        What `price_bound` turns into `bound`.
    bound
        At most the weighted sum of completion rounds of any schedule.
    seconds
        Wall time since the start.
    """

    certificate: Prices
    bound: Fraction
    seconds: float


def clique_prices(
    ramps: Ramps,
    start: Ints,
    *,
    time_limit_s: float = 20.0,
    seed: int = 0,
    target: float | None = None,
    on_bound: Callable[[CliquePrices], bool | None] | None = None,
) -> CliquePrices:
    """Find prices that prove a large bound on the weighted sum of completion rounds.

    Parameters
    ----------
    ramps
        The problem; at least one request. Meant for up to some hundred.
    start
        Starting rounds of a feasible schedule: the program looks a little beyond its end.
    time_limit_s
        Wall time, > 0; it ends by itself when passes no longer raise the bound.
    seed
        Decides from which starts cliques are grown.
    target
        Stop once this is proved.
    on_bound
        Called with each better result; True asks to stop.

    Returns
    -------
    CliquePrices
        The best found; the same each time unless the limit was reached.

    Examples
    --------
    Three requests of which no two meet: they complete at 2, 4 and 6 at best, and prices of memory prove no more than 9.

    >>> ramps = Ramps.of([3, 3, 3], [2, 2, 2], capacity=5)
    >>> clique_prices(ramps, np.array([0, 2, 4])).bound
    Fraction(12, 1)
    """
    began = time.monotonic()
    search = _Search(ramps, start, seed)
    best = search.proved(None, began)
    values: list[float] = []
    while (left := began + time_limit_s - time.monotonic()) > 0:
        duals = search.program.solve(left)
        if duals is None:
            break
        values.append(search.program.value)
        last = _stalled(values) or not search.separate()
        if last or len(values) % _CHECK_EVERY == 0:
            found = search.proved(duals, began)
            if found.bound > best.bound:
                best = found
                last |= on_bound is not None and bool(on_bound(best))
                last |= target is not None and best.bound >= target
        if last:
            break
    return best


def _stalled(values: list[float]) -> bool:
    passes, part = _STALLED
    return len(values) > passes and values[-1] - values[-1 - passes] < part * abs(values[-1])


class _Search:
    """The program, and how it gets its rows."""

    def __init__(self, ramps: Ramps, start: Ints, seed: int) -> None:
        # Who starts after the last price pays nothing: the program must know what that costs.
        horizon = int((start + ramps.rounds).max() + ramps.rounds.max())
        columns = int((horizon - ramps.rounds - ramps.arrival + 1).sum())
        self._ramps, self._random = ramps, np.random.default_rng(seed)
        self.program = TimeProgram(ramps, horizon, -(-columns // _MOST_COLUMNS))
        self._grower = Grower(ramps, horizon)
        self._seen: set[bytes] = set()
        self._passes = 0
        largest = int(ramps.peak.argmax())
        latest = horizon - int(ramps.rounds[largest])
        for t in np.unique(np.linspace(0, horizon - 1, _FIRST_ROWS).astype(np.int64)).tolist():
            self.program.add_memory(t)
            if ramps.arrival[largest] <= t <= latest:
                self._add_clique(self._grower.seed(largest, t))

    def _add_clique(self, grown: Grown) -> None:
        self.program.add_clique(self._grower.complete(grown))

    def separate(self) -> bool:
        """Add rows that the solution violates; False if none is found."""
        program = self.program
        self._passes += 1
        used = np.flatnonzero(program.part > _SOME)
        request, start, part = program.request[used], program.start[used], program.part[used]
        # Large parts and any parts in turn: the former find most, the latter what they never reach.
        begins = np.argsort(-part) if self._passes % 2 else self._random.permutation(len(used))
        violated = []
        for begin in begins[:_GROWN].tolist():
            total, grown = self._grower.violated(request, start, part, begin)
            key = grown.first.tobytes() + grown.last.tobytes()
            if total > 1 + _VIOLATED and key not in self._seen:
                self._seen.add(key)
                violated.append((total, grown))
        violated.sort(key=lambda pair: -pair[0])
        for _, grown in violated[:_KEPT]:
            self._add_clique(grown)
        blocks, seats = program.use()
        overfull = _worst(blocks / self._ramps.capacity, program.rounds_of_memory)
        crowded = _worst(seats / self._ramps.seats, program.rounds_of_seats)
        for t in overfull:
            program.add_memory(t)
        for t in crowded:
            program.add_seats(t)
        return bool(violated or overfull or crowded)

    def proved(self, duals: Duals | None, began: float) -> CliquePrices:
        """Round prices down to a certificate, and compute what it proves; later rows have no price yet."""
        memory, seats = Priced(None, np.zeros(1, np.int64)), []
        cliques: list[Clique] = []
        program, ramps = self.program, self._ramps
        if duals is not None:
            memory = Priced(None, _by_round(program.rounds_of_memory, duals.memory))
            if program.rounds_of_seats:
                ones = np.minimum(np.arange(ramps.capacity + 1), 1)
                seats.append(Priced(ones, _by_round(program.rounds_of_seats, duals.seats)))
            for grown, price in zip(program.cliques, _whole(duals.cliques).tolist(), strict=False):
                if price:
                    inside = np.flatnonzero(grown.last >= grown.first)
                    cliques.append(Clique(inside, grown.first[inside], grown.last[inside], price))
        certificate = Prices([memory, *seats], _DENOMINATOR, cliques)
        return CliquePrices(certificate, price_bound(ramps, certificate), time.monotonic() - began)


def _whole(prices: Floats) -> Ints:
    return np.floor(prices * _DENOMINATOR).astype(np.int64)


def _by_round(rounds: list[int], prices: Floats) -> Ints:
    by_round = np.zeros(max(rounds) + 1, np.int64)
    by_round[rounds[: len(prices)]] = _whole(prices)
    return by_round


def _worst(use: Floats, known: list[int]) -> list[int]:
    """Give the rounds in which most more than all is used, none next to another; `known` have their row."""
    over = use - 1
    over[[t for t in known if t < len(over)]] = 0.0
    chosen: list[int] = []
    while len(chosen) < _KEPT and len(over) and over.max() > _OVER:
        t = int(over.argmax())
        chosen.append(t)
        over[max(0, t - 2) : t + 3] = 0.0
    return chosen

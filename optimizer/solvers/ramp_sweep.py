"""An exact search for the sum of completions of a few KV ramps: all schedules at once, round by round.

In each round every unfinished schedule goes on in all ways: each set of waiting requests that fits to its end may start.
Three things keep the number of schedules small. Prices with cliques (`optimizer.bounds.clique_prices`) bound how each can
end: what cannot end better than the best known is dropped. What another one stands for is dropped
(`optimizer.solvers.ramp_dominance`). And in a best schedule no request could start a round earlier with all others where
they are. Where still more are left than a given width, those with the worst bounds are dropped: the least of these bounds
is then what is proved. This is dynamic programming with bounds (Marsten and Morin 1978), or with a width a beam search.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf

import numpy as np

from optimizer.certificates.prices import Prices
from optimizer.problem.columns import Floats, Ints
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_dominance import Dominance
from optimizer.solvers.ramp_guide import FORBIDDEN, Guide
from optimizer.solvers.ramp_states import NOT_STARTED, Ring, States
from optimizer.solvers.result import Incumbent, OnIncumbent

WIDTHS = (1_000, 10_000, 600_000)
"""A narrow search finds a better schedule soon, which keeps the next one small."""
_BEFORE = 4
"""So many times the width may be left before dominance."""
_ENDLESS = 2**13


@dataclass(frozen=True, slots=True, eq=False)
class Swept:
    """What was found.

    Attributes
    ----------
    start
        Starting rounds of the best schedule known.
    value, bound
        Weighted sum of its completion rounds, and what none is below: equal where it is proved optimal.
    """

    start: Ints
    value: float
    bound: float


def can_sweep(ramps: Ramps) -> bool:
    """Say whether `ramp_sweep` takes a problem: a few requests with whole weights > 0 and seats for all."""
    horizon = _horizon(ramps)
    whole = bool((ramps.weight == np.floor(ramps.weight)).all() and (ramps.weight > 0).all())
    return (
        0 < len(ramps) <= 64 <= 64 * (ramps.seats >= len(ramps))
        and ramps.capacity < 2**15 - 1
        and horizon < _ENDLESS
        and whole
        and float(ramps.weight.sum()) * horizon * 10**6 < FORBIDDEN
    )


def _horizon(ramps: Ramps) -> int:
    return int(ramps.arrival.max(initial=0) + ramps.rounds.sum()) + 1


def ramp_sweep(
    ramps: Ramps,
    prices: Prices,
    known: Ints,
    *,
    time_limit_s: float = 60.0,
    widths: tuple[int, ...] = WIDTHS,
    on_incumbent: OnIncumbent[Ints] | None = None,
    on_bound: Callable[[float], object] | None = None,
) -> Swept:
    """Find best starting rounds, and prove it.

    Parameters
    ----------
    ramps
        As `can_sweep` wants it.
    prices
        Of memory and cliques; the better their bound, the sooner it is done.
    known
        Starting rounds of a feasible schedule.
    time_limit_s
        Wall time, > 0.
    widths
        Most schedules that are kept in a round, one search after the other, until one of them drops nothing.
    on_incumbent
        Called with each better schedule; True asks to stop.
    on_bound
        Called with the bound that each width proves.

    Returns
    -------
    Swept
        The same each time unless the limit was reached.

    Examples
    --------
    >>> from optimizer.bounds.clique_prices import clique_prices
    >>> ramps, known = Ramps.of([4, 2, 3, 5], [2, 6, 5, 6], capacity=13), np.array([0, 2, 8, 13])
    >>> swept = ramp_sweep(ramps, clique_prices(ramps, known).certificate, known)
    >>> swept.value, swept.bound
    (24.0, 24.0)
    """
    search = _Sweep(ramps, prices, known, time_limit_s, on_incumbent)
    bound = -inf
    for width in widths:
        bound = max(bound, search.go(width))
        if on_bound is not None:
            on_bound(bound)
        if bound >= search.best or search.stop or time.monotonic() > search.until:
            break
    return Swept(search.start, search.best, bound)


class _Sweep:
    def __init__(
        self, ramps: Ramps, prices: Prices, known: Ints, time_limit_s: float, tell: OnIncumbent[Ints] | None
    ) -> None:
        self._began = time.monotonic()
        self.until = self._began + time_limit_s
        self._ramps, self._tell = ramps, tell
        self._guide = Guide(ramps, prices, _horizon(ramps))
        self._ring = Ring(ramps)
        self._dominance = Dominance(ramps, self._ring)
        self._bit = np.array([1 << i for i in range(len(ramps))], np.uint64)
        self._first = -(-ramps.prompt // ramps.block_tokens)
        self._grows = np.zeros((len(ramps), int(ramps.rounds.max()) + 1), np.bool_)
        for i, (prompt, rounds) in enumerate(zip(ramps.prompt.tolist(), ramps.rounds.tolist(), strict=True)):
            self._grows[i, : rounds - 1] = np.diff(-(-(prompt + np.arange(rounds)) // ramps.block_tokens)) > 0
        self._equal_before = _equal_before(ramps)
        self.start, self.best, self.stop = np.asarray(known), ramps.total_completion(known), False

    def go(self, width: int) -> float:
        """Search with a width; give the bound that it proves."""
        states, lost = self._nothing(), inf
        for now in range(len(self._guide.memory)):
            # Of all that comes of these nothing is below their bounds.
            least = float(self._bound(states, now).min())
            states = self._finished(self._started(states, now), now)
            if time.monotonic() > self.until:
                lost = min(lost, least)
                break
            if not len(states) or self.stop:
                break
            kept, bound = self._next_round(states, now)
            states, bound, lost = _narrow(states.take(kept), bound[kept], _BEFORE * width, lost)
            if not len(states):
                break
            if len(states) > 1:
                states = self._dominance.drop(states, now + 1, self.until)
            states, _, lost = _narrow(states, self._bound(states, now + 1), width, lost)
        if self.stop:
            return -inf
        return min(self.best, float(ceil(lost / self._guide.unit)) if lost < inf else inf)

    def _nothing(self) -> States:
        n = len(self._ramps)
        return States(
            started=np.zeros(1, np.uint64),
            use=np.full((1, self._ring.words), self._ring.empty),
            cost=np.zeros(1),
            value=np.array([self._guide.base]),
            paid=np.zeros((1, self._guide.words), np.uint64),
            before=np.full(1, self._ramps.capacity),
            movable=np.zeros((1, n), np.bool_),
            end=np.full((1, n), NOT_STARTED, np.uint16),
        )

    @property
    def _limit(self) -> float:
        """A better schedule is better by 1 at least: weights are whole."""
        return (self.best - 1) * self._guide.unit

    def _bound(self, states: States, now: int) -> Floats:
        return np.asarray(states.value + states.waiting @ self._guide.least[:, now])

    def _started(self, states: States, now: int) -> States:
        """Let each set of requests start that may: by number, so that each set comes up once."""
        charge, least = self._guide.charge[:, now], self._guide.least[:, now]
        generations, last = [states], np.full(len(states), -1)
        number = np.arange(len(self._ramps))
        while len(states) and time.monotonic() <= self.until:
            waiting = states.waiting
            bound = (states.value + waiting @ least)[:, None] + (charge - least)
            may = waiting & (bound <= self._limit) & (number > last[:, None])
            for i, before in self._equal_before:
                may[:, i] &= ~waiting[:, before]
            row, request = np.nonzero(may)
            use = self._ring.added(states.use[row], request, now)
            fits = self._ring.fits(use)
            row, request, use = row[fits], request[fits], use[fits]
            if not len(row):
                break
            states, last = self._one_more(states.take(row), request, now), request
            states.use = use
            generations.append(states)
        return States.together(generations) if len(generations) > 1 else generations[0]

    def _one_more(self, states: States, request: Ints, now: int) -> States:
        guide, ramps, row = self._guide, self._ramps, np.arange(len(states))
        end = now + ramps.rounds[request]
        states.started |= self._bit[request]
        states.value += guide.charge[request, now]
        states.cost += ramps.weight[request] * end
        states.paid |= guide.marks[now, request]
        states.end[row, request] = end
        fitted = states.before + self._first[request] <= ramps.capacity
        states.movable[row, request] = fitted & (now > ramps.arrival[request])
        return states

    def _finished(self, states: States, now: int) -> States:
        """Take out the complete schedules, and keep the best."""
        complete = ~states.waiting.any(axis=1)
        if not complete.any():
            return states
        found = np.flatnonzero(complete)
        first = int(found[states.cost[found].argmin()])
        if states.cost[first] < self.best:
            self.best = float(states.cost[first])
            self.start = states.end[first].astype(np.int64) - self._ramps.rounds
            if self._tell is not None:
                told = Incumbent(self.best, None, time.monotonic() - self._began, self.start)
                self.stop |= bool(self._tell(told))
        return states.take(~complete)

    def _next_round(self, states: States, now: int) -> tuple[Ints, Floats]:
        """Leave a round; give the rows that can still become better than the best, and the bounds of all."""
        guide, ramps, use = self._guide, self._ramps, self._ring.in_round(states.use, now)
        states.value += guide.memory[now] * (ramps.capacity - use)
        for word, bit, price in guide.over[now]:
            states.value += np.where(states.paid[:, word] & bit, 0.0, price)
            states.paid[:, word] &= ~bit
        age = now + ramps.rounds - states.end.astype(np.int64)
        running = (age >= 0) & (age < ramps.rounds)
        grows = self._grows[np.arange(len(ramps)), np.clip(age, 0, self._grows.shape[1] - 1)]
        # A request that is moved a round earlier holds what it now holds in the next round.
        states.movable &= ~((use == ramps.capacity)[:, None] & running & grows)
        early = ((states.end == now + 1) & states.movable).any(axis=1)
        states.movable &= states.end > now + 1
        states.before = use
        self._ring.leave(states.use, now)
        bound = self._bound(states, now + 1)
        return np.flatnonzero((bound <= self._limit) & ~early), bound


def _equal_before(ramps: Ramps) -> list[tuple[int, int]]:
    """Give pairs of equal requests, of which the second is to start first."""
    seen: dict[tuple[float, ...], int] = {}
    pairs = []
    for i, kind in enumerate(
        zip(
            ramps.prompt.tolist(), ramps.rounds.tolist(), ramps.arrival.tolist(), ramps.weight.tolist(),
            strict=True,
        )
    ):  # fmt: skip
        if kind in seen:
            pairs.append((i, seen[kind]))
        seen[kind] = i
    return pairs


def _narrow(states: States, bound: Floats, width: int, lost: float) -> tuple[States, Floats, float]:
    """Keep the states with the best bounds; give them, their bounds, and the least bound of all that were lost."""
    if len(states) <= width:
        return states, bound, lost
    order = np.argpartition(bound, width)
    lost = min(lost, float(bound[order[width:]].min()))
    return states.take(order[:width]), bound[order[:width]], lost

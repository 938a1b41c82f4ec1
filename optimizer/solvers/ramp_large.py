"""A search for the sum of completions of many KV ramps: orders from a fluid schedule, then exchanges under annealing.

Greedy schedules start many requests in phase, which leaves the cache half empty while they are young. The fluid
relaxation (`optimizer.bounds.fluid_prices`) staggers them; requests that start in the order of its starts are near its
value already. What is left is packing: two or three requests whose starts are close are taken out and started again
in another order, each as soon as it fits, and worse schedules are kept now and then (simulated annealing, Kirkpatrick
et al. 1983). Exchanges leave holes behind, so from time to time all requests move up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from math import inf, log

import numpy as np

from optimizer.bounds.fluid_prices import Fluid
from optimizer.errors import InputError
from optimizer.problem.columns import Ints
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_greedy import ORDERS, by_area, greedy
from optimizer.solvers.ramp_timeline import Timeline
from optimizer.solvers.result import Incumbent, OnIncumbent

_GOLDEN = (5**0.5 - 1) / 2
_DRAWS = 8
"""How many ways of spreading similar requests over the fluid's starts are tried."""
_WAYS = ((1, None), (8, None), (1, 1.04), (1, 1.08), (2, None), (1, 1.06), (1, 1.15))
"""Among how many requests next in the order a hole is filled, and by how much the fluid's starts are drawn out."""
_FLUID_PART = 0.2
"""Part of the time that starts from the fluid may take."""
_NEAR = 30
"""Exchanges are between requests at most so many starts apart."""
_HEAT = 0.03
"""Starting temperature, in mean flow times."""
_BATCH = 16
"""Exchanges between looks at the clock."""
_TELL_S = 0.1
_TURNS = {2: ((1, 0),), 3: ((1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))}
"""In which orders two or three are started again: always another one first."""


def fill(ramps: Ramps, order: Ints, choice: int, release: Ints | None = None) -> Ints:
    """Start requests about in an order, each as soon as it fits, so that holes are filled.

    Parameters
    ----------
    ramps
        The problem.
    order
        All requests, first to go first.
    choice
        Of so many requests next in the order, the one that fits soonest is started; of those that fit
        equally soon the one with the longest prompt.
    release
        Nobody starts before; None: the arrivals.

    Returns
    -------
    ndarray of int, one per request
        Starting rounds; always feasible.

    Raises
    ------
    InputError
        If some request does not fit even alone.

    Examples
    --------
    >>> ramps = Ramps.of([4, 4, 1], [2, 2, 2], capacity=7)
    >>> fill(ramps, np.array([0, 1, 2]), choice=1).tolist()
    [0, 2, 0]
    """
    timeline = Timeline(ramps)
    first = (ramps.arrival if release is None else np.maximum(ramps.arrival, release)).tolist()
    start = np.zeros(len(ramps), np.int64)
    rest = iter(order.tolist())
    fits: dict[int, int] = {}
    while True:
        while len(fits) < choice and (i := next(rest, None)) is not None:
            fits[i] = first[i]
        if not fits:
            return start
        # What has been put in since can only have made it later.
        for i, t in fits.items():
            fits[i] = timeline.earliest(i, t)
        i = min(fits, key=lambda i: (fits[i], -timeline.prompt[i]))
        start[i] = fits.pop(i)
        timeline.put(i, int(start[i]))


def ramp_large(
    ramps: Ramps,
    *,
    time_limit_s: float = inf,
    moves: int | None = None,
    seed: int = 0,
    fluid: Fluid | None = None,
    on_incumbent: OnIncumbent[Ints] | None = None,
) -> Ints:
    """Search for starting rounds with a small weighted sum of completions.

    Parameters
    ----------
    ramps
        The problem.
    time_limit_s
        Wall time. The heuristics' answers come first, whatever the limit.
    moves
        Most exchanges to try; the result is then the same each time if the time suffices. None: no such limit.
    seed
        Of the random choices.
    fluid
        From `fluid_prices`: with it the search starts much better.
    on_incumbent
        Called with each better schedule (at most some times a second once exchanges have begun); True asks to stop.

    Returns
    -------
    ndarray of int, one per request
        Starting rounds; always feasible, and never worse than those of the heuristics `ORDERS`.

    Raises
    ------
    InputError
        If some request does not fit even alone, or there is no limit.

    Examples
    --------
    >>> ramps = Ramps.of([4, 4, 1], [2, 2, 2], capacity=7)
    >>> ramps.total_completion(ramp_large(ramps, moves=100))
    8.0
    """
    if time_limit_s == inf and moves is None:
        raise InputError("the search has no limit; give time_limit_s or moves")
    best = _Best(ramps, None if fluid is None else fluid.bound, on_incumbent)
    for order in ORDERS.values():
        if best.offer(greedy(ramps, order(ramps))):
            return best.start
    for start in _first_schedules(ramps, fluid, seed):
        if best.offer(start):
            return best.start
        if best.seconds() > _FLUID_PART * time_limit_s:
            break
    _anneal(ramps, best, time_limit_s, moves, seed)
    return best.start


def _first_schedules(ramps: Ramps, fluid: Fluid | None, seed: int) -> Iterator[Ints]:
    """Make schedules to begin with, from the fluid's starts or from the best simple order."""
    if fluid is None:
        for choice, _ in _WAYS[:2]:
            yield fill(ramps, by_area(ramps), choice)
        return
    n = len(ramps)
    rank = np.empty(n)
    rank[np.lexsort((ramps.prompt, ramps.rounds))] = np.arange(n)
    offset = random.Random(seed).random()
    for number in range(_DRAWS):
        # Similar requests are at different quantiles, evenly: together they then use what the fluid uses.
        share = (rank * _GOLDEN + offset + number / _DRAWS) % 1
        target = fluid.quantile(share)
        order = np.lexsort((ramps.area, target))
        for choice, drawn_out in _WAYS:
            if drawn_out is None:
                yield fill(ramps, order, choice)
                continue
            # A full cache answers every delay with a crowd later; with some room to spare delays die out.
            release = ramps.arrival + ((target - ramps.arrival) * drawn_out).astype(np.int64)
            state = _State(ramps, fill(ramps, order, choice, release), seed)
            state.move_up()
            yield np.array(state.start)


class _Best:
    """The best schedule so far, told on at most some times a second."""

    def __init__(self, ramps: Ramps, bound: float | None, on_incumbent: OnIncumbent[Ints] | None) -> None:
        self._ramps, self._bound, self._tell = ramps, bound, on_incumbent
        self._began = self._told_at = time.monotonic()
        self._told = self.value = inf
        self.start = np.zeros(len(ramps), np.int64)

    def seconds(self) -> float:
        return time.monotonic() - self._began

    def offer(self, start: Ints) -> bool:
        """Take a schedule if it is better, and tell it; give whether to stop."""
        self.keep(start, self._ramps.total_completion(start))
        return self.tell()

    def keep(self, start: Ints, value: float) -> None:
        if value < self.value:
            self.start, self.value = start, value

    def tell(self) -> bool:
        if self._tell is None or self.value >= self._told:
            return False
        self._told, self._told_at = self.value, time.monotonic()
        return bool(self._tell(Incumbent(self.value, self._bound, self.seconds(), self.start)))

    def tell_sometimes(self) -> bool:
        return time.monotonic() - self._told_at > _TELL_S and self.tell()


def _anneal(ramps: Ramps, best: _Best, time_limit_s: float, moves: int | None, seed: int) -> None:
    n = len(ramps)
    if n < 2:
        return
    state = _State(ramps, best.start, seed)
    heat = _HEAT * (best.value / n - float((ramps.weight * ramps.arrival).mean()))
    began, done, moved_up = best.seconds(), 0, 0
    while True:
        spent = (best.seconds() - began) / max(time_limit_s - began, 1e-9)
        if moves is not None:
            spent = max(spent, done / moves if moves else 1.0)
        if spent >= 1 or best.tell_sometimes():
            break
        for _ in range(_BATCH):
            state.exchange(heat * (1 - spent))
        done += _BATCH
        if done - moved_up >= n:
            state.move_up()
            moved_up = done
        if state.value < best.value - 1e-9 * best.value:
            start = np.array(state.start)
            best.keep(start, ramps.total_completion(start))
    state.move_up()
    best.offer(np.array(state.start))


class _State:
    """A feasible schedule in the middle of the search."""

    def __init__(self, ramps: Ramps, start: Ints, seed: int) -> None:
        self.start: list[int] = start.tolist()
        self.value = ramps.total_completion(start)
        self._timeline = Timeline(ramps, start)
        self._rounds, self._arrival = ramps.rounds.tolist(), ramps.arrival.tolist()
        self._weight = ramps.weight.tolist()
        self._random = random.Random(seed).random
        self._sort()

    def _sort(self) -> None:
        self._order = sorted(range(len(self.start)), key=self.start.__getitem__)

    def _pick(self) -> list[int]:
        """Give two or three requests that start near each other, in the order of their starts when last sorted."""
        draw, n = self._random, len(self._order)
        first = int(draw() * (n - 1))
        near = min(_NEAR, n - 1 - first)
        places = {first, *(first + 1 + int(draw() * near) for _ in range(1 + (draw() < 0.5)))}
        return [self._order[place] for place in sorted(places)]

    def exchange(self, heat: float) -> None:
        """Start a few requests in another order, if the sum then is not too much worse."""
        timeline, start, chosen = self._timeline, self.start, self._pick()
        old = [start[i] for i in chosen]
        for i, t in zip(chosen, old, strict=True):
            timeline.take(i, t)
        # Nothing changes before the first of them starts but for ramps that last until then.
        first = min(old)
        turn = self._turn(len(chosen))
        new = list(old)
        for place in turn:
            i = chosen[place]
            new[place] = timeline.earliest(i, max(self._arrival[i], first - self._rounds[i] + 1))
            timeline.put(i, new[place])
        weight = self._weight
        worse = sum(weight[i] * (b - a) for i, a, b in zip(chosen, old, new, strict=True))
        if worse <= 0 or worse < -heat * log(1 - self._random()):
            for i, t in zip(chosen, new, strict=True):
                start[i] = t
            self.value += worse
            return
        for i, a, b in zip(chosen, old, new, strict=True):
            timeline.take(i, b)
            timeline.put(i, a)

    def _turn(self, count: int) -> tuple[int, ...]:
        turns = _TURNS[count]
        return turns[int(self._random() * len(turns))]

    def move_up(self) -> None:
        """Start each request as soon as it fits, in the order of starts."""
        self._sort()
        timeline, start = self._timeline, self.start
        for i in self._order:
            timeline.take(i, start[i])
            earliest = timeline.earliest(i, self._arrival[i])
            timeline.put(i, earliest)
            self.value -= self._weight[i] * (start[i] - earliest)
            start[i] = earliest
        self._sort()

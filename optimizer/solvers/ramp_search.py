"""A search for the sum of completions of some KV ramps: orders with delays, under annealing.

A schedule is an order of the requests, each started as soon as it fits beside those before it in the order. Because a
ramp grows, to start as soon as possible is not always best: it then holds more when another one ends. So a request may
also be delayed by a few rounds. Requests near each other in the order change places, or delays change, and worse
schedules are kept now and then (simulated annealing, Kirkpatrick et al. 1983).

Each move sets all later starts anew, which takes time in proportion to the square of the requests: made for up to some
hundred. For more there is `optimizer.solvers.ramp_large`.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from math import inf, log

import numpy as np

from optimizer.problem.columns import Ints
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_greedy import ORDERS, check_startable, greedy
from optimizer.solvers.ramp_lanes import Lanes
from optimizer.solvers.result import Incumbent, OnIncumbent

_HEAT = 0.06
"""Starting temperature, in mean flow times."""
_CYCLES = (0.1, 0.3, 0.6)
"""The temperature falls to 0 in so many cycles of these lengths, each from the best schedule so far."""
_DELAYS = 0.1
"""Part of the moves that change a delay."""
_NEAR = 4.0
"""Mean distance over which requests change places in the order."""
_BATCH = 32
"""Moves between looks at the clock."""
_ROOM = 1.5
"""The horizon, in lengths of the schedule to begin with."""


def ramp_search(
    ramps: Ramps,
    *,
    time_limit_s: float = 10.0,
    seed: int = 0,
    moves: int | None = None,
    start: Ints | None = None,
    target: float | None = None,
    on_incumbent: OnIncumbent[Ints] | None = None,
) -> Ints:
    """Search for starting rounds with a small weighted sum of completion rounds.

    Parameters
    ----------
    ramps
        The problem.
    time_limit_s
        Wall time, >= 0; at least the greedy schedules are tried.
    seed
        Of the search.
    moves
        Stop after about so many moves: then the result is the same each time, if the time suffices.
    start
        A feasible schedule to begin with; None: the best of the greedy ones.
    target
        Stop at a sum that is not above this.
    on_incumbent
        Called with each better schedule; True asks to stop.

    Returns
    -------
    ndarray of int, one per request
        Starting rounds, feasible.

    Raises
    ------
    InputError
        If some request does not fit even alone.

    Examples
    --------
    Small before large, but the last two the other way round:

    >>> ramps = Ramps.of([4, 2, 3, 5], [2, 6, 5, 6], capacity=13)
    >>> ramps.total_completion(ramp_search(ramps, moves=500))
    24.0
    """
    check_startable(ramps)
    best = _Best(ramps, target, on_incumbent)
    if not len(ramps):
        return best.start
    for first in [start] if start is not None else [greedy(ramps, order(ramps)) for order in ORDERS.values()]:
        best.offer(np.asarray(first))
    anneal = _Anneal(ramps, best, seed)
    begun = 0.0
    for part in _CYCLES:
        end = begun + part
        limit = best.began + time_limit_s * end
        anneal.cycle(limit, None if moves is None else round(moves * part))
        begun = end
    return best.start


class _Best:
    """The best schedule so far, and whether to stop."""

    def __init__(self, ramps: Ramps, target: float | None, on_incumbent: OnIncumbent[Ints] | None) -> None:
        self._ramps, self._target, self._tell = ramps, target, on_incumbent
        self.began = time.monotonic()
        self.value, self.start = inf, np.zeros(len(ramps), np.int64)
        self.stop = False

    def offer(self, start: Ints) -> None:
        value = self._ramps.total_completion(start)
        if value >= self.value:
            return
        self.value, self.start = value, start
        self.stop |= self._target is not None and value <= self._target
        if self._tell is not None:
            self.stop |= bool(self._tell(Incumbent(value, None, time.monotonic() - self.began, start)))


@dataclass(slots=True)
class _Order:
    """An order with its schedule, and the schedule and the weighted sum of starts before each place."""

    requests: list[int]
    start: list[int]
    used: list[int]
    sums: list[float]


class _Anneal:
    def __init__(self, ramps: Ramps, best: _Best, seed: int) -> None:
        end = int((best.start + ramps.rounds).max())
        self._ramps, self._best = ramps, best
        self._lanes = Lanes(ramps, int(_ROOM * end) + int(ramps.rounds.max()) + 1)
        self._arrival, self._weight = ramps.arrival.tolist(), ramps.weight.tolist()
        self._fixed = float((ramps.weight * ramps.rounds).sum())
        self._random = random.Random(seed)
        self._delay = [0] * len(ramps)

    def cycle(self, until: float, moves: int | None) -> None:
        """Anneal from the best schedule until a time of the monotonic clock, or for a number of moves."""
        best, begun, done = self._best, time.monotonic(), 0
        self._delay = [0] * len(self._arrival)
        order = self._order_of(np.lexsort((self._ramps.rounds, best.start)).tolist())
        waited = float((self._ramps.weight * self._ramps.arrival).sum())
        hot = _HEAT * (best.value - waited) / len(self._arrival)
        while not best.stop and len(self._arrival) > 1:
            now = time.monotonic()
            spent = (now - begun) / max(until - begun, 1e-9)
            if moves is not None:
                spent = max(spent, done / max(moves, 1))
            if spent >= 1:
                return
            heat = hot * (1 - spent) ** 2
            for _ in range(_BATCH):
                self._move(order, heat)
            done += _BATCH

    def _order_of(self, requests: list[int]) -> _Order:
        order = _Order(requests, [0] * len(requests), [self._lanes.empty], [0.0])
        found = self._later(order, requests, 0, inf)
        if found is None:  # delayed beyond the horizon: keep what is known to be feasible
            found = self._best.start.tolist()
        self._take(order, requests, found, 0)
        return order

    def _move(self, order: _Order, heat: float) -> None:
        draw = self._random.random
        limit = order.sums[-1] - heat * log(1 - draw())
        if draw() < _DELAYS:
            place = int(draw() * len(order.requests))
            request = order.requests[place]
            old = self._delay[request]
            self._delay[request] = self._other_delay(old)
            if not self._try(order, order.requests, place, limit):
                self._delay[request] = old
            return
        one = int(draw() * len(order.requests))
        other = one + (1 + int(self._random.expovariate(1 / _NEAR))) * (1 if draw() < 0.5 else -1)
        if not 0 <= other < len(order.requests):
            return
        requests = order.requests.copy()
        if draw() < 0.5:
            requests[one], requests[other] = requests[other], requests[one]
        else:
            requests.insert(other, requests.pop(one))
        self._try(order, requests, min(one, other), limit)

    def _other_delay(self, delay: int) -> int:
        draw = self._random.random
        if delay and draw() < 0.6:
            return 0 if draw() < 0.5 else delay - 1
        return delay + 1 + int(self._random.expovariate(0.7))

    def _try(self, order: _Order, requests: list[int], place: int, limit: float) -> bool:
        """Start all from a place in the order on anew; take the schedule if its sum is within the limit."""
        start = self._later(order, requests, place, limit)
        if start is None:
            return False
        self._take(order, requests, start, place)
        if order.sums[-1] + self._fixed < self._best.value - 1e-9 * self._best.value:
            self._best.offer(np.array(order.start))
        return True

    def _later(self, order: _Order, requests: list[int], place: int, limit: float) -> list[int] | None:
        lanes, delay, arrival, weight = self._lanes, self._delay, self._arrival, self._weight
        used, total, start = order.used[place], order.sums[place], order.start.copy()
        for request in requests[place:]:
            t = lanes.earliest(used, request, arrival[request])
            if t is not None and delay[request]:
                t = lanes.earliest(used, request, t + delay[request])
            if t is None:
                return None
            start[request] = t
            used = lanes.put(used, request, t)
            total += weight[request] * t
            if total > limit:
                return None
        return start

    def _take(self, order: _Order, requests: list[int], start: list[int], place: int) -> None:
        order.requests, order.start = requests, start
        del order.used[place + 1 :], order.sums[place + 1 :]
        used, total = order.used[place], order.sums[place]
        for request in requests[place:]:
            used = self._lanes.put(used, request, start[request])
            total += self._weight[request] * start[request]
            order.used.append(used)
            order.sums.append(total)

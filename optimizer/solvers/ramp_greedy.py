"""Greedy schedules of KV ramps: requests in a fixed order, each started as soon as all that it will hold fits.

The scan of a round stops at the first request in the order that does not fit (the prefix rule). So while the
order's first waiting request does not fit, nobody starts, and its start is the first round at which it fits beside
those that have started.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from optimizer.errors import InputError
from optimizer.problem.columns import Ints
from optimizer.problem.ramps import Ramps


def check_startable(ramps: Ramps) -> None:
    """Refuse requests that do not fit even alone.

    Raises
    ------
    InputError
        If a request's peak exceeds the capacity, or there is no seat.
    """
    too_big = np.flatnonzero(ramps.peak > ramps.capacity)
    if len(too_big):
        i = int(too_big[0])
        raise InputError(
            f"request {i} needs {int(ramps.peak[i])} blocks in its last round, there are {ramps.capacity}; "
            "shorten it or give the engine more memory"
        )
    if ramps.seats < 1 and len(ramps):
        raise InputError(f"seats is {ramps.seats}; expected at least 1")


def greedy(ramps: Ramps, order: Ints) -> Ints:
    """Start requests in an order, each once it fits to its end, nobody before a waiting predecessor in the order.

    Parameters
    ----------
    ramps
        The problem.
    order
        All requests, first to go first. One that has not arrived is passed over until it does.

    Returns
    -------
    ndarray of int, one per request
        Starting rounds; always feasible.

    Raises
    ------
    InputError
        If some request does not fit even alone.

    Notes
    -----
    With `order` by ascending rounds and all arrivals at 0 this is MC-SF of arXiv 2502.07115. Memory is
    checked in every round, which is the same as checking it at completions: in between it only grows.

    Examples
    --------
    >>> ramps = Ramps.of([2, 2, 2], [3, 1, 2], capacity=5)
    >>> greedy(ramps, np.array([1, 2, 0])).tolist()
    [1, 0, 0]
    """
    check_startable(ramps)
    n = len(ramps)
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    plan = _Plan(ramps)
    start = np.zeros(n, np.int64)
    arrivals = sorted(range(n), key=lambda i: (ramps.arrival[i], rank[i]))
    waiting: list[tuple[int, int]] = []
    now = arrived = 0
    while waiting or arrived < n:
        if not waiting:
            now = max(now, int(ramps.arrival[arrivals[arrived]]))
        while arrived < n and ramps.arrival[arrivals[arrived]] <= now:
            heapq.heappush(waiting, (int(rank[arrivals[arrived]]), arrivals[arrived]))
            arrived += 1
        first = waiting[0][1]
        next_arrival = int(ramps.arrival[arrivals[arrived]]) if arrived < n else None
        now = plan.first_fit(first, now, next_arrival)
        if now != next_arrival:  # else: who arrives in that round may go before it
            heapq.heappop(waiting)
            plan.place(first, now)
            start[first] = now
    return start


class _Plan:
    """Blocks and seats left in each round, the array growing with the schedule."""

    def __init__(self, ramps: Ramps) -> None:
        self._ramps = ramps
        self._prompt, self._rounds = ramps.prompt.tolist(), ramps.rounds.tolist()
        longest = int(ramps.rounds.max(initial=0))
        self._held_from_prompt: dict[int, Ints] = {}
        self._age = np.arange(longest)
        self._free = np.full(4 * longest + 1024, ramps.capacity, np.int64)
        self._seats = np.full(len(self._free) if ramps.seats < len(ramps) else 0, ramps.seats, np.int64)

    def _held(self, i: int) -> Ints:
        prompt = self._prompt[i]
        held = self._held_from_prompt.get(prompt)
        if held is None:
            held = self._held_from_prompt[prompt] = -(-(prompt + self._age) // self._ramps.block_tokens)
        return held[: self._rounds[i]]

    def _reach(self, end: int) -> None:
        if end > len(self._free):
            more = max(end - len(self._free), len(self._free))
            self._free = np.concatenate([self._free, np.full(more, self._ramps.capacity)])
            if len(self._seats):
                self._seats = np.concatenate([self._seats, np.full(more, self._ramps.seats)])

    def first_fit(self, i: int, earliest: int, latest: int | None) -> int:
        """Give the first round from `earliest` on in which i can start, or `latest` if it cannot before."""
        held, prompt = self._held(i), self._prompt[i]
        size = len(held)
        tokens = self._ramps.block_tokens
        while latest is None or earliest < latest:
            self._reach(earliest + size)
            free = self._free[earliest : earliest + size]
            bad = np.flatnonzero(free < held)
            later = 0
            if len(bad):
                # In a round with too little room the request must be younger, or not be there yet.
                age = np.maximum(free[bad] * tokens - prompt, -1)
                later = int((bad - age).max())
            if len(self._seats):
                taken = np.flatnonzero(self._seats[earliest : earliest + size] < 1)
                later = max(later, int(taken[-1]) + 1 if len(taken) else 0)
            if not later:
                return earliest
            earliest += later
        return latest

    def place(self, i: int, start: int) -> None:
        held = self._held(i)
        self._free[start : start + len(held)] -= held
        if len(self._seats):
            self._seats[start : start + len(held)] -= 1


def by_arrival(ramps: Ramps) -> Ints:
    """Order by arrival: first come first served."""
    return np.argsort(ramps.arrival, kind="stable")


def by_rounds(ramps: Ramps) -> Ints:
    """Order by rounds, per weight: MC-SF (Jaillet et al., arXiv 2502.07115)."""
    return np.argsort(ramps.rounds / _positive(ramps), kind="stable")


def by_area(ramps: Ramps) -> Ints:
    """Order by the area of the ramp, per weight: smallest volume first (Kong et al., arXiv 2606.22327)."""
    return np.argsort(ramps.area / _positive(ramps), kind="stable")


def by_batches(ramps: Ramps) -> Ints:
    """Order by batches of least total rounds over squared size: Sorted-F (Wang et al., arXiv 2508.06133).

    The best batch of those left is searched for among the prefixes of three orders (rounds, peak, area) whose
    peaks fit together, since the exact search is NP-hard. Inside a batch the fewest rounds go first.
    """
    measures = [np.argsort(m, kind="stable") for m in (ramps.rounds, ramps.peak, ramps.area)]
    left = np.ones(len(ramps), bool)
    batches = []
    for _ in range(len(ramps)):
        if not left.any():
            break
        best, least = None, np.inf
        for order in measures:
            rest = order[left[order]]
            fits = max(1, int(np.searchsorted(np.cumsum(ramps.peak[rest]), ramps.capacity, side="right")))
            score = np.cumsum(ramps.rounds[rest[:fits]]) / np.arange(1, fits + 1) ** 2
            count = int(score.argmin())
            if score[count] < least:
                best, least = rest[: count + 1], score[count]
        assert best is not None
        batches.append(best[np.lexsort((best, ramps.rounds[best]))])
        left[best] = False
    return np.concatenate(batches) if batches else np.zeros(0, np.int64)


def _positive(ramps: Ramps) -> np.ndarray:
    # A request without weight goes last.
    return np.where(ramps.weight > 0, ramps.weight, 1e-300)


ORDERS: dict[str, Callable[[Ramps], Ints]] = {
    "fcfs": by_arrival,
    "mc-sf": by_rounds,
    "svf": by_area,
    "sorted-f": by_batches,
}
"""The named orders; each gives all requests, first to go first."""

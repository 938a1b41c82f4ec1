"""The search for starting rounds in a process of its own, beside whatever the caller does with its processor."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count
from math import inf
from typing import Self

import numpy as np

from optimizer.problem.columns import Ints
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_search import ramp_search
from optimizer.solvers.result import Incumbent
from optimizer.solvers.task import Emit, Ended, Found
from optimizer.solvers.worker import ProcessWorker

_SIXTEEN_S = 1.0
"""How long a search takes to anneal 16 requests; it grows with the cube of their number."""


@dataclass(slots=True)
class _Search:
    """A search as a task; its events are better schedules."""

    ramps: Ramps
    start: Ints
    seed: int
    time_limit_s: float

    def run(self, emit: Emit) -> None:
        """Search again and again until the time is up: few requests are as well annealed soon as late."""
        until, best = time.monotonic() + self.time_limit_s, inf
        whole = _SIXTEEN_S * (len(self.ramps) / 16) ** 3

        def tell(found: Incumbent[Ints]) -> None:
            nonlocal best
            if found.value < best:
                best = found.value
                emit(Found(found.solution, found.value, None))

        for seed in count(self.seed):
            left = until - time.monotonic()
            if left <= 0:
                break
            ramp_search(
                self.ramps, start=self.start, seed=seed, time_limit_s=min(whole, left), on_incumbent=tell
            )
        emit(Ended("limit", None, ""))

    def stop(self) -> None:
        """Nothing: it is abandoned when it is no longer needed."""


class Beside:
    """Searches with one seed after the other, until the end of the block.

    Parameters
    ----------
    ramps, start, seed, time_limit_s
        As `optimizer.solvers.ramp_search`.

    Examples
    --------
    >>> ramps = Ramps.of([4, 2, 3, 5], [2, 6, 5, 6], capacity=13)
    >>> with Beside(ramps, np.array([0, 2, 8, 13]), seed=0, time_limit_s=0.2) as search:
    ...     ramps.total_completion(search.result())
    24.0
    """

    def __init__(self, ramps: Ramps, start: Ints, *, seed: int, time_limit_s: float) -> None:
        self._ramps, self._best = ramps, start
        self._value = ramps.total_completion(start)
        self._over = False
        self._worker = ProcessWorker(_Search(ramps, start, seed, time_limit_s), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.abandon()

    def best(self) -> Ints:
        """Give the best starting rounds so far."""
        self._listen(0.0)
        return self._best

    def result(self) -> Ints:
        """Wait for the end of the search, and give its best."""
        while not self._over:
            self._listen(None)
        return self._best

    def _listen(self, patience: float | None) -> None:
        while not self._over and (event := self._worker.next_event(patience)) is not None:
            if isinstance(event, Ended):
                self._over = True  # it may have died: then what it told before stands
            elif (
                isinstance(event, Found) and event.value < self._value and self._ramps.feasible(event.values)
            ):
                self._best, self._value = np.asarray(event.values), self._ramps.total_completion(event.values)

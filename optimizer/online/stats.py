"""What a horizon did so far: who answered how often, how fast, and what went wrong on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optimizer.online.lengths import Score
from optimizer.online.messages import Source

_RING = 4096


class Latencies:
    """The last few thousand durations of a call.

    Examples
    --------
    >>> took = Latencies()
    >>> for us in range(1, 101): took.add(1000 * us)
    >>> took.microseconds(0.5), took.microseconds(0.99)
    (50.0, 99.0)
    """

    __slots__ = ("_next", "_ring")

    def __init__(self) -> None:
        self._ring: list[int] = []
        self._next = 0

    def add(self, nanoseconds: int) -> None:
        """Take one in."""
        if len(self._ring) < _RING:
            self._ring.append(nanoseconds)
        else:
            self._ring[self._next] = nanoseconds
            self._next = (self._next + 1) % _RING

    def microseconds(self, q: float) -> float | None:
        """Give a quantile (the nearest rank); None: nothing was measured."""
        if not self._ring:
            return None
        ordered = sorted(self._ring)
        return ordered[max(0, -(-int(q * 1000) * len(ordered) // 1000) - 1)] / 1000

    def summary(self) -> dict[str, float | None]:
        """Give median, 99th percentile and the longest, in microseconds."""
        return {"p50": self.microseconds(0.5), "p99": self.microseconds(0.99), "max": self.microseconds(1.0)}


@dataclass(slots=True)
class Counts:
    """Events since the start, or since the first start where a horizon was restored.

    Attributes
    ----------
    submitted, rejected, finished, cancelled
        Requests; `rejected` by reason. Those submitted and not rejected are finished, cancelled, or still there.
    preemptions
        Requests thrown out.
    steps
        By what composed them; a step in which nothing is computed is `idle`.
    plans, plans_refused, plans_repaired
        Plans of the solver that were adopted; not adopted, because they made no sense; adopted less requests that were
        gone by then.
    unknown_ids, repeated_reports, clock_jumps, short_steps, rule_errors, planner_errors
        Faults that were absorbed: see `RollingHorizon`.
    """

    submitted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    finished: int = 0
    cancelled: int = 0
    preemptions: int = 0
    steps: dict[Source, int] = field(default_factory=dict)
    plans: int = 0
    plans_refused: int = 0
    plans_repaired: int = 0
    unknown_ids: int = 0
    repeated_reports: int = 0
    clock_jumps: int = 0
    short_steps: int = 0
    rule_errors: int = 0
    planner_errors: int = 0


@dataclass(frozen=True, slots=True)
class SolverStats:
    """What the solver behind the loop did.

    Attributes
    ----------
    state
        `off`, `idle`, `starting`, `solving`, or `waiting` (to be started again after a failure).
    solves, answers
        Windows handed to it, and plans that came back.
    deaths, hangs, garbage
        How often its process ended by itself, was killed because it did not answer in time, or because what it
        answered was no plan.
    mean_s
        Of a solve; None: there was none.
    """

    state: str = "off"
    solves: int = 0
    answers: int = 0
    deaths: int = 0
    hangs: int = 0
    garbage: int = 0
    mean_s: float | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """A look at a horizon.

    Attributes
    ----------
    waiting, running
        Requests.
    kv_share
        Of the KV blocks, those that are held.
    counts, solver
        See there.
    predictors
        What each predictor was worth.
    next_step_us, submit_us
        Wall time of the last 4,096 calls: quantiles `p50`, `p99` and `max` in microseconds.
    step_time_factor
        How much longer steps take than the engine's card says.
    ttft_mean_s, latency_mean_s
        Of the last few hundred requests; None: there was none.
    """

    waiting: int
    running: int
    kv_share: float
    counts: Counts
    solver: SolverStats
    predictors: Mapping[str, Score]
    next_step_us: Mapping[str, float | None]
    submit_us: Mapping[str, float | None]
    step_time_factor: float
    ttft_mean_s: float | None
    latency_mean_s: float | None

    def to_document(self) -> dict[str, Any]:
        """Give the JSON form."""
        return dataclasses.asdict(self)


class Mean:
    """A mean in which the last few hundred values weigh most."""

    __slots__ = ("_count", "value")

    def __init__(self) -> None:
        self._count = 0
        self.value: float | None = None

    def add(self, value: float) -> None:
        """Take one in.

        >>> mean = Mean(); mean.add(1.0); mean.add(2.0); mean.value
        1.5
        """
        self._count = min(self._count + 1, 300)
        old = value if self.value is None else self.value
        self.value = old + (value - old) / self._count

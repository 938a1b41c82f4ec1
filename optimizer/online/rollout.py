"""What a plan is worth: the loop itself, run ahead from a snapshot, on the engine's step times and drawn lengths.

The heuristic is the base policy and a plan changes its order or its knobs, so a plan that is worth less than the heuristic
alone is known as such before anybody follows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from statistics import NormalDist
from typing import Any

import numpy as np

from optimizer.capacity.step_time import StepClock
from optimizer.online.ahead import Run
from optimizer.online.knobs import Knobs, Levels, OnlineObjective
from optimizer.online.plan import Snapshot
from optimizer.online.snapshot import COLUMNS
from optimizer.online.state import DECODE
from optimizer.policies.horizon_rules import Belief, remaining_tokens
from optimizer.problem.engine import Engine

_MOST_DRAWN = 48
"""Requests that nobody has seen."""
_NORMAL = NormalDist()
_LEAST_SIGMA = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """A request of a snapshot.

    Attributes
    ----------
    serial, prompt, cached, cap, mu, sigma, most, arrival_s, due_s, weight, tpot_slo_s, key, life
        As `optimizer.online.snapshot` writes them.
    known, computed
        Tokens of its prompt and output so far, and those in the KV cache.
    """

    serial: int
    known: int
    computed: int
    cap: int
    mu: float
    sigma: float
    most: float
    key: float
    arrival_s: float
    due_s: float
    life: int
    prompt: int
    cached: int
    weight: float
    tpot_slo_s: float | None


@dataclass(frozen=True, slots=True)
class Scenario:
    """What may happen.

    Attributes
    ----------
    truth
        By serial: output tokens.
    others
        Requests that nobody has seen: those that wait behind the window, and arrivals, in order.
    """

    truth: dict[int, int]
    others: tuple[Row, ...]


class Rollouts:
    """Runs the loop ahead from a moment.

    Parameters
    ----------
    engine, objective
        As the horizon's.
    seen
        The moment.
    levels
        Of the horizon's rule.
    window_s
        Arrivals are expected for so long.
    scenarios
        Draws of lengths and arrivals; every plan is judged by the same. As many more are kept to judge the best anew.
    seed
        Of the draws.
    """

    def __init__(
        self,
        engine: Engine,
        objective: OnlineObjective,
        seen: Snapshot,
        levels: Levels,
        *,
        window_s: float = 5.0,
        scenarios: int = 3,
        seed: int = 0,
    ) -> None:
        self.engine = engine.model_copy(update={"step_time": engine.step_time.scaled(float(seen["factor"]))})
        self.objective, self.levels = objective, levels
        self.clock = StepClock(self.engine.step_time)
        self.now_s = float(seen["now_s"])
        self._decode_clock = int(seen["clock"])
        self.batch, self.usual_wait_s = int(seen["batch"]), float(seen["usual_wait_s"])
        self.running = [self._row(values) for values in seen["running"]]
        self.waiting = [self._row(values) for values in seen["waiting"]]
        self._recent = [self._row(values) for values in seen["recent"]]
        self._rate, hidden = float(seen["rate"]), int(seen["hidden"])
        self._drawn_behind = min(hidden, _MOST_DRAWN) if self._recent else 0
        self.behind = hidden - self._drawn_behind + self._rate * window_s
        """Requests that come after those of a run: waiting ones of which nothing is shown, and a window's arrivals."""
        rng = np.random.default_rng(seed)
        self._chosen_by = [self._draw(rng, window_s) for _ in range(scenarios)]
        self._kept = [self._draw(rng, window_s) for _ in range(scenarios)]
        self._longest: dict[int, float] = {}

    def _row(self, values: Sequence[Any]) -> Row:
        row = dict(zip(COLUMNS, values, strict=True))
        if row.pop("phase") == DECODE:
            row["known"] += self._decode_clock
            row["computed"] = row["known"] - 1
        return Row(**row)

    def _draw(self, rng: np.random.Generator, window_s: float) -> Scenario:
        """Draw who comes, and the length of every request, above what is out."""
        others = list(self._others(rng, window_s))
        truth = {}
        rows = [*self.running, *self.waiting, *others]
        for row, u in zip(rows, rng.random(len(rows)).tolist(), strict=True):
            generated, sigma = row.known - row.prompt, max(row.sigma, _LEAST_SIGMA)
            below = _NORMAL.cdf((log(generated) - row.mu) / sigma) if generated else 0.0
            q = min(max(below + u * (1 - below), 1e-6), 1 - 1e-6)
            length = round(exp(row.mu + sigma * _NORMAL.inv_cdf(q)))
            truth[row.serial] = min(max(length, generated + 1), row.cap)
        return Scenario(truth, tuple(others))

    def _others(self, rng: np.random.Generator, window_s: float) -> Iterator[Row]:
        """Give requests like the last ones: some that wait behind those that are shown, then arrivals."""
        serial = max((row.serial for row in (*self.running, *self.waiting, *self._recent)), default=0)
        last = max((row.key for row in self.waiting), default=0.0)
        now, until = self.now_s, self.now_s + window_s
        for number in range(_MOST_DRAWN):
            comes = number >= self._drawn_behind
            if comes:
                now += rng.exponential(1 / self._rate) if self._rate > 0 else math.inf
            if now > until or not self._recent:
                return
            like = self._recent[int(rng.integers(len(self._recent)))]
            serial += 1
            later = now - like.arrival_s
            yield replace(
                like, serial=serial, known=like.prompt, computed=0, life=-1, arrival_s=now,
                key=like.key + later if comes else last, due_s=like.due_s + later,
            )  # fmt: skip

    def remaining(self, row: Row) -> int:
        """Give the output tokens that a request is expected to have left, at least 1."""
        generated = row.known - row.prompt
        expected = remaining_tokens(Belief(row.mu, max(row.sigma, _LEAST_SIGMA)), generated)
        return max(1, min(round(expected), row.cap - generated))

    def value(self, order: Sequence[int], knobs: Knobs) -> float:
        """Give what a plan is worth, smaller is better: the mean over the scenarios.

        `latency`, `fair`: seconds from arrival to the end, by weight, over all requests; and as many seconds again as the
        longest wait for a first token is longer than with the heuristic alone, or the mean would be bought from the last
        percent. `throughput`: seconds until all is done. `goodput`: requests that miss a level.
        """
        return self._mean(order, knobs, self._chosen_by)

    def value_anew(self, order: Sequence[int], knobs: Knobs) -> float:
        """Give the same by scenarios that nobody has chosen a plan by: the best of many is partly luck."""
        return self._mean(order, knobs, self._kept)

    def _mean(self, order: Sequence[int], knobs: Knobs, scenarios: list[Scenario]) -> float:
        return sum(Run(self, knobs, order, scenario).value() for scenario in scenarios) / len(scenarios)

    def longest_wait_s(self, scenario: Scenario) -> float:
        """Give the longest wait for a first token with the heuristic alone."""
        found = self._longest.get(id(scenario))
        if found is None:
            found = self._longest[id(scenario)] = Run(self, Knobs(), (), scenario).longest_wait_s()
        return found

    def starts(self, order: Sequence[int], knobs: Knobs) -> dict[int, float]:
        """Give the moments at which requests start in the first scenario."""
        return Run(self, knobs, order, self._chosen_by[0]).started

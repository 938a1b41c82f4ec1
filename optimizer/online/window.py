"""Solves a window: proposes orders and knobs, and keeps what the rollouts say is best."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np

from optimizer.errors import InputError
from optimizer.online.knobs import Knobs, Levels, Mode, OnlineObjective
from optimizer.online.plan import Snapshot, WindowPlan
from optimizer.online.rollout import Rollouts
from optimizer.online.window_models import Window, by_cp_sat, by_milp
from optimizer.problem.engine import Engine

Method = Literal["cp-sat", "milp", "search"]
_PRICES = (0.0, 0.3, 3.0)
_LEAST_MODELLED = 8
"""Waiting requests that are worth a model: with fewer, simple orders and moves do."""
_WORTH_IT = 0.01
"""A plan must be better than the heuristic by this share, or the heuristic goes on: less is luck with the draws."""
_KNOB_WORTH_IT = 0.05
"""The same for a change of knobs, whose cost in throughput a window hardly shows."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a window is solved.

    Attributes
    ----------
    seconds
        Wall time of the whole, about.
    evaluations
        In place of the time, for runs that repeat themselves: so many rollouts.
    method
        What proposes an order beside the simple ones: CP-SAT, a MILP, or nothing.
    scenarios
        Draws of the lengths.
    """

    seconds: float = 1.0
    evaluations: int | None = None
    method: Method = "cp-sat"
    scenarios: int = 2

    def __post_init__(self) -> None:
        if self.method not in ("cp-sat", "milp", "search"):
            raise InputError(f"{self.method!r}; expected cp-sat, milp or search", field="method")


def solve(
    seen: Snapshot, engine: Engine, options: Mapping[str, Any], effort: Effort, seed: int = 0
) -> WindowPlan:
    """Plan a window.

    Parameters
    ----------
    seen
        `optimizer.online.snapshot.snapshot`.
    engine
        As the horizon's.
    options
        The horizon's: objective, confidence, levels.
    effort
        How hard to try.
    seed
        Of everything that is drawn.

    Returns
    -------
    WindowPlan
        No worse than the heuristic alone, as far as the rollouts can tell; the same where nothing better was found.
    """
    return _Search(seen, engine, options, effort, seed).plan()


_Candidate = tuple[float, tuple[int, ...], Knobs, str]
"""Value, order, knobs, and what proposed it."""


class _OutOfEffort(Exception):
    pass


class _Search:
    def __init__(
        self, seen: Snapshot, engine: Engine, options: Mapping[str, Any], effort: Effort, seed: int
    ) -> None:
        self._began = time.perf_counter()
        self._seen, self._engine, self._effort, self._seed = seen, engine, effort, seed
        self._objective: OnlineObjective = options["objective"]
        known = {field.name for field in dataclasses.fields(Levels)}
        levels = Levels(**{name: value for name, value in options.items() if name in known})
        self._rollouts = Rollouts(
            engine, self._objective, seen, levels, window_s=float(options.get("window_s", 5.0)),
            scenarios=effort.scenarios, seed=seed,
        )  # fmt: skip
        self._evaluations = 0
        self._best: _Candidate = (float("inf"), (), Knobs(), "")

    def plan(self) -> WindowPlan:
        heuristic = self._rollouts.value((), Knobs())
        alone: _Candidate = (heuristic, (), Knobs(), "heuristic")
        self._best = alone
        try:
            for proposals in (self._current, self._orders, self._model, self._knobs, self._neighbours):
                for order, knobs, by in proposals():
                    self._try(order, knobs, by)
        except _OutOfEffort:
            pass
        value, order, knobs, by = self._best if self._holds(heuristic) else alone
        starts: dict[int, float] = self._rollouts.starts(order, knobs) if order else {}
        return WindowPlan(
            order,
            tuple(starts.get(serial, self._rollouts.now_s) for serial in order),
            knobs,
            self._rollouts.now_s,
            value,
            heuristic,
            time.perf_counter() - self._began,
            by,
        )

    def _holds(self, heuristic: float) -> bool:
        """Say whether the best is better than the heuristic, also where it was not chosen for that."""
        value, order, knobs, _ = self._best
        least = 1 - _WORTH_IT
        if value > heuristic * least:
            return False
        return self._rollouts.value_anew(order, knobs) < least * self._rollouts.value_anew((), Knobs())

    def _try(self, order: tuple[int, ...], knobs: Knobs, by: str) -> None:
        limit = self._effort.evaluations
        spent = self._evaluations >= limit if limit is not None else self._elapsed() > self._effort.seconds
        if spent:
            raise _OutOfEffort
        self._evaluations += 1
        value = self._rollouts.value(order, knobs)
        least = 1 - _KNOB_WORTH_IT if knobs != self._best[2] else 1.0
        if value < self._best[0] * least:
            self._best = (value, order, knobs, by)

    def _elapsed(self) -> float:
        return time.perf_counter() - self._began

    # ---- proposals, the cheapest first

    def _current(self) -> Iterator[tuple[tuple[int, ...], Knobs, str]]:
        """The plan in force, less who has gone: nothing that was found before is lost."""
        there = {row.serial for row in self._rollouts.waiting}
        price, chunk, mode = self._seen["knobs"]
        knobs = Knobs(float(price), chunk, cast("Mode", mode))
        order = tuple(serial for serial in self._seen["plan"] if serial in there)
        if order or knobs != Knobs():
            yield order, knobs, "last plan"

    def _knobs(self) -> Iterator[tuple[tuple[int, ...], Knobs, str]]:
        """One knob at a time, from the best so far."""
        for price in _PRICES:
            yield self._best[1], replace(self._best[2], price=price), "price"
        for chunk in (512, 2048):
            if chunk < self._engine.max_num_batched_tokens:
                yield self._best[1], replace(self._best[2], chunk_tokens=chunk), "chunk"
        modes: tuple[Mode, ...] = ("mixed", "exclusive")
        for mode in modes:
            yield self._best[1], replace(self._best[2], mode=mode), "mode"

    def _orders(self) -> Iterator[tuple[tuple[int, ...], Knobs, str]]:
        """The orders of scheduling theory: least output, smallest KV volume, longest first for throughput."""
        if self._objective == "fair":
            return  # shares decide the order
        rows, left = self._rollouts.waiting, self._rollouts.remaining
        keys: dict[str, Callable[[Any], float]] = {
            "shortest": lambda r: left(r) / r.weight,
            "smallest": lambda r: (r.known * left(r) + left(r) * (left(r) + 1) / 2) / r.weight,
            "least prompt": lambda r: (r.known - r.cached) / r.weight,
        }
        if self._objective == "throughput":
            keys["longest"] = lambda r: -left(r)
        for name, key in keys.items():
            yield tuple(r.serial for r in sorted(rows, key=key)), self._best[2], name

    def _model(self) -> Iterator[tuple[tuple[int, ...], Knobs, str]]:
        """CP-SAT or the MILP, from the best order so far."""
        method = self._effort.method
        if method == "search" or self._objective == "fair":
            return
        behind = [row.serial for row in self._rollouts.waiting]
        if len(behind) < _LEAST_MODELLED:
            return
        known = list(self._best[1]) or behind
        window = Window.of(self._rollouts, self._engine, known)
        if window is None:
            return
        run = by_cp_sat if method == "cp-sat" else by_milp
        repeats_itself = self._effort.evaluations is not None
        spent = 0.0 if repeats_itself else self._elapsed()
        order = run(
            window,
            self._objective,
            time_limit_s=max(0.05, 0.5 * (self._effort.seconds - spent)),
            seed=self._seed,
            deterministic=repeats_itself,
        )
        if order is not None:
            named = set(order)
            yield (*order, *(s for s in known if s not in named)), self._best[2], method

    def _neighbours(self) -> Iterator[tuple[tuple[int, ...], Knobs, str]]:
        """One request moved, from the best so far, until the effort is spent."""
        rng = np.random.default_rng(self._seed)
        n = len(self._rollouts.waiting)
        while n > 1 and self._objective != "fair":
            order = list(self._best[1]) or [row.serial for row in self._rollouts.waiting]
            # Near the head a move changes what is next; far behind it hardly matters.
            i, j = (min(len(order) - 1, int(rng.exponential(8.0))) for _ in range(2))
            order.insert(j, order.pop(i))
            yield tuple(order), self._best[2], "search"

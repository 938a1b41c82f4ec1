"""Instances in equal rounds: searched and bounded as KV ramps, executed by the simulator like any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from optimizer.bounds.fluid_prices import Fluid, fluid_prices
from optimizer.certificates.prices import bounding_ramps
from optimizer.offline.bounds import Bound, prices_bound, weighing
from optimizer.problem import Instance, Schedule
from optimizer.problem.columns import Ints
from optimizer.problem.instance import Objective
from optimizer.problem.plan import OrderPlan, Plan
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_large import ramp_large
from optimizer.solvers.result import Incumbent, OnIncumbent

Offer = Callable[[Ints, str], bool]
"""Brings starting rounds and what found them; says whether that is enough."""

_TELL_S = 2.0
_BOUND_PART = 0.35
"""Part of the time that prices may take: they start the search, too."""


class Run(Protocol):
    """What a solve offers to a method: the instance, the time, and where to bring what is found."""

    instance: Instance
    view: Instance
    goals: tuple[Objective, ...]
    seed: int
    bound: Bound | None

    @property
    def left_s(self) -> float:
        """Seconds left."""

    def offer_plan(self, plan: Plan, source: str, claimed: float | None = None) -> object:
        """Bring a plan."""

    def offer_bound(self, bound: Bound) -> None:
        """Bring a bound."""

    def done(self) -> bool:
        """Whether the wanted gap is reached."""

    def best_schedule(self) -> Schedule:
        """The best schedule so far."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """An instance as ramps, and the way back."""

    ramps: Ramps
    round_s: float
    arrival_s: float
    """Weighted mean of the arrivals."""
    is_whole: bool
    """Whether all arrive at the beginning of a round: what is proved of the ramps then holds for the instance."""

    @classmethod
    def of(cls, instance: Instance, round_s: float, *, weighted: bool) -> Rounds:
        """Read an instance whose rounds are equal."""
        ramps = weighing(Ramps.from_instance(instance, round_s), weighted=weighted)
        arrival_s = instance.requests.arrival_s
        whole = bool(np.allclose(ramps.arrival * round_s, arrival_s, rtol=0, atol=1e-9))
        return cls(ramps, round_s, float(np.average(arrival_s, weights=ramps.weight)), whole)

    def latency_s(self, start: Ints) -> float:
        """Give the mean latency of starting rounds, by weight."""
        return self.latency_of(self.ramps.total_completion(start))

    def latency_of(self, total: float) -> float:
        """Give the mean latency of a weighted sum of completion rounds."""
        return total / float(self.ramps.weight.sum()) * self.round_s - self.arrival_s


def solve_many(run: Run, rounds: Rounds, start: Ints, offer: Offer) -> None:
    """Bring starting rounds and price bounds until the time is up or the gap is reached.

    Parameters
    ----------
    run
        A solve for the mean or the weighted latency.
    rounds
        Its view.
    start
        A feasible schedule to begin with.
    offer
        Brings starting rounds.
    """
    fluid = _prices(run, start)
    if run.done() or run.left_s <= 0:
        return
    best = ramp_large(
        rounds.ramps,
        time_limit_s=run.left_s,
        seed=run.seed,
        fluid=fluid,
        on_incumbent=now_and_then(run, offer),
    )
    offer(best, "search")


def offerer(run: Run, rounds: Rounds) -> Offer:
    """Give a function that brings starts; it says whether that is enough."""

    def offer(start: Ints, source: str) -> bool:
        plan = OrderPlan.of_starts(start.tolist(), round_s=rounds.round_s)
        run.offer_plan(plan, source, rounds.latency_s(start))
        return run.done() or run.left_s <= 0

    return offer


def now_and_then(run: Run, offer: Offer) -> OnIncumbent[Ints]:
    """Bring a better schedule once in a while: to execute every one would take the time from the search."""
    told = run.left_s + _TELL_S

    def tell(incumbent: Incumbent[Ints]) -> bool:
        nonlocal told
        if told - run.left_s < _TELL_S:
            return run.left_s <= 0
        told = run.left_s
        return offer(incumbent.solution, "search")

    return tell


def _prices(run: Run, start: Ints) -> Fluid:
    """Find prices, and bring the bounds that they prove; prices are on the true lengths, like every bound."""
    ramps = weighing(bounding_ramps(run.instance), weighted=run.goals[0] == "weighted-latency")

    def prove(fluid: Fluid) -> bool:
        run.offer_bound(prices_bound(run.instance, run.goals[0], fluid.certificate))
        return run.done() or run.left_s <= 0

    return fluid_prices(ramps, start, time_limit_s=max(0.1, _BOUND_PART * run.left_s), on_bound=prove)

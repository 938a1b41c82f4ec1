"""The bounds of an offline solve, each with the certificate that proves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.bounds.clique_prices import clique_prices
from optimizer.bounds.fluid_prices import fluid_prices
from optimizer.bounds.lines import find_lines
from optimizer.certificates import Verified, price_certificate, verify, work_certificate
from optimizer.certificates.prices import Prices, bounding_ramps
from optimizer.problem import Instance
from optimizer.problem.columns import Ints
from optimizer.problem.instance import Objective
from optimizer.problem.ramps import Ramps, equal_round_s
from optimizer.solvers.ramp_greedy import ORDERS, greedy

LATENCIES: tuple[Objective, ...] = ("mean-latency", "weighted-latency")
"""Objectives that prices on rounds bound."""

_FEW = 100
_MOST_STARTS = 60_000
"""So many requests, and starts of them, the program of cliques can take."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A proved lower bound.

    Attributes
    ----------
    value
        In the units of the objective, rounded down.
    by
        What proves it.
    certificate
        The document that `optimizer check` verifies; None where a solver's word is all there is.
    """

    value: float
    by: str
    certificate: dict[str, Any] | None


def work_bound(instance: Instance, objective: Objective) -> Bound | None:
    """Bound an objective by the work that has to be done (`optimizer.certificates.work`); None for goodput."""
    if objective == "goodput":
        return None
    document = work_certificate(instance, objective, find_lines(instance, objective))
    return bound_of(verify(document, instance), document)


def bound_of(verified: Verified, document: dict[str, Any]) -> Bound:
    """Make a verified certificate a bound."""
    return Bound(verified.rounded_down, verified.kind, document)


def best_bound(instance: Instance, objective: Objective, time_limit_s: float = 20.0) -> Bound | None:
    """Bound an objective by everything there is, and give the best; None where nothing applies.

    Parameters
    ----------
    instance
        Requests, with their true lengths, and engine.
    objective
        Of the bound.
    time_limit_s
        Wall time for what is searched (prices on rounds), > 0.
    """
    found = [work_bound(instance, objective)]
    if objective in LATENCIES and equal_round_s(instance) is not None:
        ramps = weighing(bounding_ramps(instance), weighted=objective == "weighted-latency")
        start = best_greedy(ramps)
        if is_few(ramps, start):
            prices = clique_prices(ramps, start, time_limit_s=time_limit_s).certificate
        else:
            prices = fluid_prices(ramps, start, time_limit_s=time_limit_s).certificate
        found.append(prices_bound(instance, objective, prices))
    return max((bound for bound in found if bound is not None), key=lambda bound: bound.value, default=None)


def prices_bound(instance: Instance, objective: Objective, prices: Prices) -> Bound:
    """Make prices a bound with a certificate."""
    document = price_certificate(instance, objective, prices)
    return bound_of(verify(document, instance), document)


def is_few(ramps: Ramps, start: Ints) -> bool:
    """Say whether the program of cliques can take a problem, of which a feasible schedule is known."""
    return len(ramps) <= _FEW and len(ramps) * int((start + ramps.rounds).max()) <= _MOST_STARTS


def weighing(ramps: Ramps, *, weighted: bool) -> Ramps:
    """Give ramps in which every request weighs the same, unless weights are wanted."""
    if weighted:
        return ramps
    return Ramps.of(
        ramps.prompt, ramps.rounds, capacity=ramps.capacity, arrival=ramps.arrival,
        block_tokens=ramps.block_tokens, seats=ramps.seats,
    )  # fmt: skip


def best_greedy(ramps: Ramps) -> Ints:
    """Give the starts of the best greedy order."""
    starts = [greedy(ramps, order(ramps)) for order in ORDERS.values()]
    return starts[int(np.argmin([ramps.total_completion(start) for start in starts]))]

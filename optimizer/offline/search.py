"""Local search over plans in order form: limits one at a time, then the order, judged by nothing but the simulator."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from optimizer.offline.heuristics import neighbours, orders, token_limits
from optimizer.problem import Instance
from optimizer.problem.plan import OrderPlan

Value = tuple[float, ...]
Evaluate = Callable[[OrderPlan], Value | None]
"""Value of a plan, smaller is better, compared as a tuple; None where it cannot be executed."""

_FIRST_TEMPERATURE = 3e-4
"""By how much, relative to the value, a worse neighbour may be accepted at the start."""


class OutOfTime(Exception):
    """The time of a search is over."""


def grid(instance: Instance) -> dict[str, list[Any]]:
    """Give the values of each limit of a plan that are worth trying on an engine."""
    engine = instance.engine
    sizes = token_limits(instance)
    # Small batches of prompts are no batches, unless there are only a few prompts.
    whole = int(instance.requests.prompt_tokens.sum())
    batches = [size for size in sizes if size >= min(1024, whole / 8)]
    few = [size for size in sizes if size < engine.max_num_seqs]
    shares = sorted(
        {max(1, round(engine.max_num_seqs * share)) for share in (0.25, 0.35, 0.5, 0.6, 0.75, 0.9)}
    )
    return {
        "mixing": ["mixed", "exclusive"],
        "memory": ["peak-safe", "plain"],
        "step_tokens": [None, *sizes],
        "max_decodes": [None, *few],
        "prefill_batch": [None, *batches, engine.max_num_batched_tokens],
        "max_seqs": [None, *shares],
        "prefill_tokens": [None, *sizes],
    }


def sweep(evaluate: Evaluate, instance: Instance, seed: int) -> tuple[OrderPlan, Value] | None:
    """Try every order, then change one limit at a time, or two that belong together, until no change helps.

    Parameters
    ----------
    evaluate
        Of a plan; may raise `OutOfTime`, which ends the sweep early from outside.
    instance
        Its requests give the orders, its engine the limits.
    seed
        Of orders that are drawn.

    Returns
    -------
    tuple or None
        The best plan and its value; None if no plan can be executed.
    """
    best: tuple[OrderPlan, Value] | None = None

    def better(plans: Iterable[OrderPlan]) -> bool:
        nonlocal best
        found = False
        for plan in plans:
            value = evaluate(plan)
            if value is not None and (best is None or value < best[1]):
                best, found = (plan, value), True
        return found

    seats = instance.engine.max_num_seqs
    drawn = orders(instance, seed, seats)
    better(
        OrderPlan(order=order, memory=memory) for order in drawn.values() for memory in ("peak-safe", "plain")
    )
    if best is None:
        return None
    # Whether prompts share steps with decodes comes before all limits: it is the other kind of engine.
    better([best[0].model_copy(update={"mixing": "exclusive"})])
    values = grid(instance)
    improved = True
    while improved:
        improved = False
        # Few decodes at a time pay where prompts are computed ahead of them, in large steps: neither does alone.
        base = best[0].model_copy(update={"step_tokens": None, "memory": "plain"})
        improved |= better(
            base.model_copy(
                update={"max_decodes": most, "prefill_batch": values["prefill_batch"][1], "max_seqs": seats}
            )
            for most in values["max_decodes"][1:]
            for seats in [None, *(s for s in values["max_seqs"][1:] if s > most)]
        )
        for field, choices in values.items():
            base = best[0]
            improved |= better(
                base.model_copy(update={field: choice})
                for choice in choices
                if choice != getattr(base, field)
            )
        base = best[0]
        drawn = orders(instance, seed, base.max_decodes or base.max_seqs or seats)
        improved |= better(base.model_copy(update={"order": order}) for order in drawn.values())
    return best


def anneal(
    evaluate: Evaluate, plan: OrderPlan, value: Value, progress: Callable[[], float], seed: int
) -> tuple[OrderPlan, Value]:
    """Improve the order of a plan by simulated annealing until `evaluate` raises `OutOfTime`.

    Parameters
    ----------
    evaluate
        As in `sweep`.
    plan, value
        Where to start.
    progress
        Share of the time that is over, in [0, 1].
    seed
        Of every draw.

    Returns
    -------
    tuple
        The best plan seen and its value.

    Notes
    -----
    Moves shrink with the time: first across the whole order, at last among near places.
    """
    rng = np.random.default_rng(seed)
    best = current = (plan, value)
    n = len(plan.order)
    if n < 2:
        return best
    try:
        while True:
            share = min(1.0, progress())
            reach = max(1, round(n ** (1 - 0.6 * share)))
            order = next(neighbours(current[0].order, rng, reach))
            neighbour = plan.model_copy(update={"order": order})
            found = evaluate(neighbour)
            if found is None:
                continue
            warmth = _FIRST_TEMPERATURE * (1 - share) ** 2 * abs(current[1][0])
            worse = found[0] - current[1][0]
            if found <= current[1] or (warmth > 0 and rng.random() < math.exp(-worse / warmth)):
                current = (neighbour, found)
            if found < best[1]:
                best = (neighbour, found)
    except OutOfTime:
        return best

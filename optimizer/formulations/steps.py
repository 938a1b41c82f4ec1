"""`steps`: the exact step-by-step model of a small instance, for CP-SAT (mathematics: models/formulations/steps.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from math import ceil
from operator import mul

from ortools.sat.python import cp_model

from optimizer.errors import InputError
from optimizer.formulations.steps_time import Rates, WholeStepTime, choose_unit, to_seconds
from optimizer.formulations.steps_trace import (
    StepsObjective,
    Trace,
    arrivals,
    one_after_another,
    walk,
)
from optimizer.formulations.steps_writer import StepsWriter, Values
from optimizer.problem.instance import Instance
from optimizer.problem.plan import StepsPlan

MOST_VARIABLES = 50_000
"""A model of more variables than this is refused: building it takes seconds, and it would never be solved."""
_PER_REQUEST = 20
"""Variables of a request in a step, beside one for each of its tokens."""

_FINEST_WEIGHT = 10**6


@dataclass(frozen=True, slots=True)
class StepsModel:
    """The model, and how to read it.

    Attributes
    ----------
    model
        Minimises whole units, with the known plan as a hint.
    read
        Makes a `StepsPlan` of the values of a solution.
    seconds_per_unit
        Of the objective: makespan, mean or weighted mean latency, mean TTFT, in seconds, is the objective times
        this.
    exact
        Whether nothing was rounded. Otherwise every rate and arrival was rounded down to `unit_s`: the optimum is
        then a lower bound for the engine, and the replay of the plan tells what it is worth.
    unit_s
        Length of the unit.
    steps
        Steps that the model has room for; no better schedule has more.
    """

    model: cp_model.CpModel
    read: Callable[[Values], StepsPlan]
    seconds_per_unit: float
    exact: bool
    unit_s: float
    steps: int


def build_steps(
    instance: Instance,
    *,
    objective: StepsObjective | None = None,
    known: StepsPlan | None = None,
    preempt: bool = True,
    hold: bool = True,
) -> StepsModel:
    """Build the model.

    Parameters
    ----------
    instance
        Up to some eight requests. Prefix caching and asynchronous scheduling are not modelled.
    objective
        None: the instance's. `ttft` leaves what follows the last first token to the engine's own rule.
    known
        A plan that serves all requests; the better, the smaller the model. None: one request after another.
    preempt
        Whether running requests may be thrown out and computed anew.
    hold
        Whether running requests may skip steps with their KV kept.

    Raises
    ------
    InputError
        If the instance asks for more than the model can say, or is too large for it.

    Examples
    --------
    >>> from optimizer.problem import Engine, Requests, StepTime
    >>> engine = Engine(name="toy", kv_blocks=9, block_tokens=1, step_time=StepTime.affine(base_s=1.0))
    >>> requests = Requests.from_columns({"prompt_tokens": [2, 2], "output_tokens": [3, 3]})
    >>> built = build_steps(Instance("two", requests, engine, "makespan"))
    >>> built.steps, built.exact, built.unit_s
    (6, True, 1.0)
    """
    goal = objective or instance.objective
    if goal == "goodput":
        raise InputError(
            "the steps model knows no goodput; choose makespan, a latency or ttft", field="objective"
        )
    for setting in ("prefix_caching", "async_scheduling"):
        if getattr(instance.engine, setting):
            raise InputError(
                f"the steps model knows no {setting}; replace it by false", field=f"engine.{setting}"
            )
    _refuse_if_large(max(tokens for _, tokens in _sizes(instance, goal)), instance)
    known = known or one_after_another(instance)
    weights, parts = _weights(instance, goal)
    ticks_time = WholeStepTime.of(instance.engine.step_time, 1)
    last = _last_moment(instance, ticks_time, goal, weights, walk(instance, known, ticks_time))
    unit, exact = choose_unit(instance.engine.step_time, arrivals(instance, 1), last)
    time = WholeStepTime.of(instance.engine.step_time, unit)
    trace = walk(instance, known, time)
    last = _last_moment(instance, time, goal, weights, trace)
    steps = _most_steps(instance, time, goal, last)
    _refuse_if_large(steps, instance)
    least = (
        0 if goal == "makespan" else ceil(least_sum(instance, time, goal, weights, list(range(len(weights)))))
    )
    written = StepsWriter(
        instance,
        time,
        goal,
        weights,
        trace,
        _earliest(instance, time, goal),
        least,
        last,
        steps,
        preempt,
        hold,
    )
    written.write()
    return StepsModel(
        written.model,
        written.read,
        to_seconds(1, unit) / parts,
        exact and parts == (1 if goal == "makespan" else sum(weights)),
        to_seconds(1, unit),
        steps,
    )


def _refuse_if_large(steps: int, instance: Instance) -> None:
    size = steps * int((_PER_REQUEST + instance.requests.output_tokens).sum())
    if size > MOST_VARIABLES:
        raise InputError(
            f"the model would have {steps:,} steps and some {size:,} variables; give fewer or shorter requests, "
            f"or a better known plan (most: {MOST_VARIABLES:,})"
        )


def _weights(instance: Instance, goal: StepsObjective) -> tuple[list[int], float]:
    """Give whole weights, rounded down, and what the weighted sum is to be divided by."""
    n, given = len(instance.requests), instance.requests.weight
    if goal == "makespan":
        return [1] * n, 1
    if goal != "weighted-latency" or given is None:
        return [1] * n, n
    exact = [Fraction(str(weight)) for weight in given.tolist()]
    scale = 1
    while scale < _FINEST_WEIGHT and any((weight * scale).denominator > 1 for weight in exact):
        scale *= 10
    whole = [int(weight * scale) for weight in exact]
    if min(whole) < 1:
        row = whole.index(min(whole))
        raise InputError(
            f"request {instance.requests.name(row)} has weight {given[row]}; expected at least {1 / scale:g}: with "
            "none at all it could wait for ever",
            field="weight",
        )
    return whole, float(sum(exact) * scale)


def _earliest(instance: Instance, time: WholeStepTime, goal: StepsObjective) -> list[tuple[int, int]]:
    """Give of each request the steps that it takes at least to its milestone, and the moment of that."""
    budget = instance.engine.max_num_batched_tokens
    found = []
    arrived = arrivals(instance, time.unit_ticks)
    for (prompt, tokens), arrival in zip(_sizes(instance, goal), arrived, strict=True):
        steps = -(-prompt // budget) + tokens - 1
        found.append((steps, arrival + steps * time.least))
    return found


def _last_moment(
    instance: Instance, time: WholeStepTime, goal: StepsObjective, weights: list[int], known: Trace
) -> int:
    """Give when the last milestone comes at the latest in a schedule that is no worse than the known one."""
    moments = known.milestones(goal)
    if goal == "makespan":
        return max(moments)
    total, everybody = sum(map(mul, weights, moments)), range(len(weights))
    return max(
        int(
            (total - least_sum(instance, time, goal, weights, [i for i in everybody if i != last]))
            // weights[last]
        )
        for last in everybody
    )


def least_sum(
    instance: Instance, time: WholeStepTime, goal: StepsObjective, weights: list[int], some: list[int]
) -> Fraction:
    """Bound the weighted sum of the milestones of some requests from below, in units.

    Of two requests, the one that reaches its milestone first has done all its work before both; and in its steps
    the other one computes tokens, too, or is idle and then needs a step more for each.
    """
    sizes = _sizes(instance, goal)
    earliest = _earliest(instance, time, goal)
    best = Fraction(sum(weights[i] * earliest[i][1] for i in some))
    for rates in time.floors():

        def work(i: int, tokens: int, rates: Rates = rates) -> int:
            return time.least_work(rates, sizes[i][0], tokens, again=True) if tokens > 0 else 0

        def in_order(
            first: int, second: int, base: int = rates.base, work: Callable[..., int] = work
        ) -> Fraction:
            steps, tokens = earliest[first][0], sizes[second][1]
            # A step that the second one idles is shared out among all its pairs.
            idle_or_work = min(
                Fraction(2 * weights[second] * base * idle, len(some) - 1)
                + weights[first] * work(second, min(tokens, steps - idle))
                for idle in range(steps + 1)
            )
            return weights[second] * work(first, sizes[first][1]) + idle_or_work

        own = sum(weights[i] * (2 * rates.base * earliest[i][0] + work(i, sizes[i][1])) for i in some)
        pairs = (min(in_order(i, j), in_order(j, i)) for i, j in combinations(some, 2))
        best = max(best, (own + sum(pairs, Fraction(0))) / 2)
    return best


def _most_steps(instance: Instance, time: WholeStepTime, goal: StepsObjective, last: int) -> int:
    """Give how many steps can end by a moment by which all have reached their milestones."""
    most = last // time.least
    for rates in time.floors():
        if rates.base:
            work = sum(time.least_work(rates, *size, again=True) for size in _sizes(instance, goal))
            most = min(most, (2 * last - work) // (2 * rates.base))
    return most


def _sizes(instance: Instance, goal: StepsObjective) -> list[tuple[int, int]]:
    """Give the prompt of each request, and the tokens up to its milestone."""
    outputs = instance.requests.output_tokens.tolist()
    tokens = [1] * len(outputs) if goal == "ttft" else outputs
    return list(zip(instance.requests.prompt_tokens.tolist(), tokens, strict=True))

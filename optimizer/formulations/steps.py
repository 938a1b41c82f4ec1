"""`steps`: the exact step-by-step model of a small instance, for CP-SAT (mathematics: models/formulations/steps.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations
from operator import mul

from ortools.sat.python import cp_model

from optimizer.errors import InputError
from optimizer.formulations.steps_time import Rates, WholeStepTime, choose_unit, to_seconds
from optimizer.formulations.steps_trace import StepsObjective, Trace, arrivals, one_after_another, walk
from optimizer.formulations.steps_writer import StepsWriter, Values
from optimizer.problem.instance import Instance
from optimizer.problem.plan import StepsPlan

MOST_STEPS = 2000
"""A model of more steps than this is refused: it would not fit into memory, and never be solved."""

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
    known = known or one_after_another(instance)
    weights, parts = _weights(instance, goal)
    ticks_time = WholeStepTime.of(instance.engine.step_time, 1)
    last = _last_moment(instance, ticks_time, goal, weights, walk(instance, known, ticks_time))
    unit, exact = choose_unit(instance.engine.step_time, arrivals(instance, 1), last)
    time = WholeStepTime.of(instance.engine.step_time, unit)
    trace = walk(instance, known, time)
    last = _last_moment(instance, time, goal, weights, trace)
    steps = _most_steps(instance, time, goal, last)
    if steps > MOST_STEPS:
        raise InputError(
            f"the model would have {steps} steps; give a better known plan, or fewer or shorter requests "
            f"(most: {MOST_STEPS})"
        )
    written = StepsWriter(
        instance, time, goal, weights, trace, _earliest(instance, time, goal), last, steps, preempt, hold
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
    for prompt, output, arrival in zip(
        instance.requests.prompt_tokens.tolist(),
        instance.requests.output_tokens.tolist(),
        arrivals(instance, time.unit_ticks),
        strict=True,
    ):
        steps = -(-prompt // budget) + (0 if goal == "ttft" else output - 1)
        found.append((steps, arrival + steps * time.least))
    return found


def _last_moment(
    instance: Instance, time: WholeStepTime, goal: StepsObjective, weights: list[int], known: Trace
) -> int:
    """Give when the last milestone comes at the latest in a schedule that is no worse than the known one."""
    moments = known.milestones(goal)
    if goal == "makespan":
        return max(moments)
    earliest = [moment for _, moment in _earliest(instance, time, goal)]
    total, everybody = sum(map(mul, weights, moments)), range(len(weights))

    def others(last: int) -> int:
        """Twice the least weighted sum of the milestones of all but one."""
        rest = [i for i in everybody if i != last]
        least = 2 * sum(weights[i] * earliest[i] for i in rest)
        for rates in time.floors():
            work = _work(instance, time, rates, goal)
            own = sum(weights[i] * (2 * rates.base * steps[i] + work[i]) for i in rest)
            # Whoever of two is first has done all its work before both milestones.
            shared = sum(min(weights[i] * work[j], weights[j] * work[i]) for i, j in combinations(rest, 2))
            least = max(least, own + shared)
        return least

    steps = [count for count, _ in _earliest(instance, time, goal)]
    return max((2 * total - others(i)) // (2 * weights[i]) for i in everybody)


def _most_steps(instance: Instance, time: WholeStepTime, goal: StepsObjective, last: int) -> int:
    """Give how many steps can end by a moment by which all have reached their milestones."""
    most = last // time.least
    for rates in time.floors():
        if rates.base:
            most = min(most, (2 * last - sum(_work(instance, time, rates, goal))) // (2 * rates.base))
    return most


def _work(instance: Instance, time: WholeStepTime, rates: Rates, goal: StepsObjective) -> list[int]:
    """Give twice the units of work of each request up to its milestone, by one floor of the step time."""
    return [
        time.least_work(rates, prompt, 1 if goal == "ttft" else output, again=True)
        for prompt, output in zip(
            instance.requests.prompt_tokens.tolist(), instance.requests.output_tokens.tolist(), strict=True
        )
    ]

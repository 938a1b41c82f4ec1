"""The CP-SAT formulations of schedules, built and solved: `solve_steps` and `solve_ramps`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from optimizer.errors import InputError, PolicyError
from optimizer.policies.plan import PlanPolicy
from optimizer.problem import Instance
from optimizer.problem.columns import Ints
from optimizer.problem.instance import Objective
from optimizer.problem.knowledge import with_knowledge
from optimizer.problem.plan import StepsPlan
from optimizer.problem.ramps import Ramps
from optimizer.problem.schedule import Schedule
from optimizer.simulator import simulate
from optimizer.solvers import cpsat
from optimizer.solvers.result import Incumbent, OnBound, OnIncumbent, Solved, Status, meets

if TYPE_CHECKING:
    from optimizer.formulations.ramps import RampsObjective
    from optimizer.formulations.steps_trace import StepsObjective

T = TypeVar("T")

WORKERS = 8
"""CP-SAT's workers search in different ways: eight of them prove most, on two cores as well."""

_STARTS = ("vllm-v1", "sjf", "lpt", "svf", "mc-sf", "srpt")
"""Policies whose schedules the steps model starts from: the best of them also limits its size."""


def solve_steps(
    instance: Instance,
    *,
    objective: StepsObjective | None = None,
    known: StepsPlan | None = None,
    preempt: bool = True,
    hold: bool = True,
    time_limit_s: float | None = None,
    workers: int = WORKERS,
    seed: int = 0,
    deterministic: bool = False,
    on_incumbent: OnIncumbent[StepsPlan] | None = None,
    on_bound: OnBound | None = None,
) -> Solved[StepsPlan]:
    """Find the best schedule that the simulator can be made to execute, step by step.

    Parameters
    ----------
    instance
        Up to some eight requests; see `optimizer.formulations.steps.build_steps` for what it may have.
    objective
        None: the instance's.
    known
        A plan to start from; None: what the best of a few policies does.
    preempt, hold
        Whether requests may be thrown out, or skip steps.
    time_limit_s, workers, seed, deterministic, on_bound
        As `cpsat.run`; bounds are in seconds.
    on_incumbent
        Told of plans with what the model says they are worth, in seconds.

    Returns
    -------
    Solved
        Plan, value in seconds as the simulator executes it, and bound in seconds; `message` tells the slippage: by
        how much the value exceeds what the model claimed, 0 where no time had to be rounded. Without a solution of
        the solver's own, the plan it started from.

    Raises
    ------
    InputError
        If the instance asks for more than the model can say, or is too large for it.

    Examples
    --------
    The second prompt waits until both fit to their ends.

    >>> from optimizer.problem import Engine, Requests, StepTime
    >>> engine = Engine(name="toy", kv_blocks=5, block_tokens=1, step_time=StepTime.affine(base_s=1.0))
    >>> requests = Requests.from_columns({"prompt_tokens": [2, 2], "output_tokens": [3, 2]})
    >>> done = solve_steps(Instance("two", requests, engine, "makespan"), preempt=False, workers=1)
    >>> done.status.value, done.value, done.message
    ('optimal', 4.0, 'slippage 0 s')
    """
    from optimizer.formulations import steps

    goal = _goal(objective or instance.objective)
    if known is None:
        known = _best_known(instance, goal)
    preempt = preempt and instance.engine.preemption != "none"
    built = steps.build_steps(instance, objective=goal, known=known, preempt=preempt, hold=hold)
    scale = built.seconds_per_unit
    done = cpsat.run(
        built.model,
        built.read,
        time_limit_s=time_limit_s,
        workers=workers,
        seed=seed,
        deterministic=deterministic,
        on_incumbent=_scaled(on_incumbent, scale),
        on_bound=None if on_bound is None else lambda bound: on_bound(bound * scale),
    )
    plan, message = done.solution, done.message
    bound = None if done.bound is None else done.bound * scale
    if plan is None:
        plan, claim = known, None
    else:
        claim = None if done.value is None else done.value * scale
    value = _value(simulate(instance, PlanPolicy(plan)).schedule, instance, goal)
    if claim is not None:
        message = f"slippage {value - claim:.3g} s"
    status = done.status
    if status in (Status.OPTIMAL, Status.FEASIBLE, Status.UNKNOWN):
        proved = status is Status.OPTIMAL and meets(value, bound)
        status = Status.OPTIMAL if proved else Status.FEASIBLE
    return dataclasses.replace(done, status=status, value=value, bound=bound, solution=plan, message=message)


def _goal(objective: Objective) -> StepsObjective:
    if objective == "goodput":
        raise InputError(
            "the steps model knows no goodput; choose makespan, a latency or ttft", field="objective"
        )
    return objective


def _best_known(instance: Instance, goal: StepsObjective) -> StepsPlan:
    """Give what the best of a few policies does when lengths are known; not each can serve each engine."""
    view = dataclasses.replace(instance, requests=with_knowledge(instance.requests, "exact"))
    schedules = []
    for name in _STARTS:
        with contextlib.suppress(PolicyError):
            schedules.append(simulate(view, name).schedule)
    return StepsPlan.of_schedule(min(schedules, key=lambda schedule: _value(schedule, instance, goal)))


def _value(schedule: Schedule, instance: Instance, goal: StepsObjective) -> float:
    requests = instance.requests
    if goal == "makespan":
        return float(schedule.finish_s.max())
    moments = schedule.first_token_s if goal == "ttft" else schedule.finish_s
    weights = requests.weight if goal == "weighted-latency" else None
    return float(np.average(moments - requests.arrival_s, weights=weights))


def solve_ramps(
    ramps: Ramps,
    *,
    objective: RampsObjective = "latency",
    known: Ints | None = None,
    deadline: Sequence[int] | None = None,
    fixed: Mapping[int, int] | None = None,
    window: Mapping[int, tuple[int, int]] | None = None,
    least: float = 0.0,
    grain: int = 1,
    time_limit_s: float | None = None,
    workers: int = WORKERS,
    seed: int = 0,
    deterministic: bool = False,
    on_incumbent: OnIncumbent[Ints] | None = None,
    on_bound: OnBound | None = None,
) -> Solved[Ints]:
    """Find the best starting rounds of KV ramps.

    Parameters
    ----------
    ramps, objective, known, deadline, fixed, window, least, grain
        As `optimizer.formulations.ramps.build`.
    time_limit_s, workers, seed, deterministic, on_incumbent, on_bound
        As `cpsat.run`; values and bounds are those of the objective.

    Returns
    -------
    Solved
        Starting rounds; make a plan of them with `OrderPlan.of_starts`. With `grain` above 1 there is no bound.

    Raises
    ------
    InputError
        As `optimizer.formulations.ramps.build`.

    Examples
    --------
    >>> done = solve_ramps(Ramps.of([2, 2, 2], [3, 1, 2], capacity=5), workers=1)
    >>> done.status.value, done.value, done.solution.tolist()
    ('optimal', 7.0, [1, 0, 0])
    """
    from optimizer.formulations import ramps as formulation

    built = formulation.build(
        ramps,
        objective=objective,
        known=known,
        deadline=deadline,
        fixed=fixed,
        window=window,
        least=least,
        grain=grain,
    )
    scale = built.per_unit
    told = None if on_bound is None or not built.is_exact else on_bound
    done = cpsat.run(
        built.model,
        built.read,
        time_limit_s=time_limit_s,
        workers=workers,
        seed=seed,
        deterministic=deterministic,
        on_incumbent=_scaled(on_incumbent, scale, bounded=built.is_exact),
        on_bound=None if told is None else lambda bound: told(bound * scale),
    )
    bound = done.bound * scale if done.bound is not None and built.is_exact else None
    if done.solution is None:
        status = done.status
        if status is Status.INFEASIBLE and not built.is_exact:
            return dataclasses.replace(
                done, status=Status.UNKNOWN, bound=None, message=f"nothing with a grain of {grain} blocks"
            )
        return dataclasses.replace(done, bound=bound)
    value = formulation.value_of(ramps, done.solution, objective, deadline)
    status = done.status
    if status is Status.OPTIMAL and not meets(value, bound):
        status = Status.FEASIBLE
    return dataclasses.replace(done, status=status, value=value, bound=bound)


def _scaled(
    told: OnIncumbent[T] | None, scale: float, *, bounded: bool = True
) -> Callable[[Incumbent[T]], bool | None] | None:
    """Tell incumbents in the units of the objective."""
    if told is None:
        return None

    def tell(incumbent: Incumbent[T]) -> bool | None:
        bound = incumbent.bound * scale if incumbent.bound is not None and bounded else None
        return told(dataclasses.replace(incumbent, value=incumbent.value * scale, bound=bound))

    return tell

"""A few requests: the model of single steps, whose optimum is the best that the engine can be made to execute."""

from __future__ import annotations

from optimizer.errors import InputError
from optimizer.offline.bounds import Bound
from optimizer.offline.rounds import Run
from optimizer.problem.instance import Objective
from optimizer.problem.plan import StepsPlan
from optimizer.solvers.models import solve_steps

_FEW = 8
"""So many requests the model of single steps can take."""
_STEPS_PART = 0.5
STEPS: tuple[Objective, ...] = ("makespan", "mean-latency", "weighted-latency", "ttft")
"""Objectives that the model of single steps knows."""


def solve_small(run: Run) -> None:
    """Bring the best schedule of a few requests that the engine can be made to execute, and a proof if there is time.

    An instance that the model cannot express (shared prefixes, asynchronous scheduling, too many steps) is left to
    the search.
    """
    goal = run.goals[0]
    if len(run.view.requests) > _FEW or goal not in STEPS or run.left_s <= 0:
        return
    try:
        solved = solve_steps(
            run.view,
            objective=goal,  # type: ignore[arg-type]
            known=StepsPlan.of_schedule(run.best_schedule()),
            preempt=run.view.engine.preemption != "none",
            time_limit_s=_STEPS_PART * run.left_s,
            seed=run.seed,
        )
    except InputError:
        return
    if solved.solution is not None:
        run.offer_plan(solved.solution, "steps model", solved.value)
    if solved.bound is not None:
        run.offer_bound(Bound(solved.bound, solved.solver, None))

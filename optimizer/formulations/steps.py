"""`steps`: every step of a small instance, for CP-SAT (mathematics: models/formulations/steps.md).

The optimum is what the best schedule is worth that the simulator can be made to execute, with the engine's own step times.

Sets        i in I requests; k in 0..K-1 steps; t in 1..o_i output tokens; r in R regimes of the step time, their pieces
Data        p_i prompt tokens, o_i output tokens, a_i arrival, w_i weight, M blocks of b tokens, B seats, Q token budget
Variables   n_ik prompt tokens computed; m_ik whether any, d_ik decode, x_ik thrown out before the step, s_ik prompt done,
            y_itk token t is out by the end of step k; c_ik tokens of KV; u_k the step is used; S_k, E_k its start and end
Objective   min E_K-1, or sum_i w_i (F_i - a_i), F_i = E_k of the step that puts out i's last (or first) token
Constraints (1) states: a request is out, computes its prompt, may decode, or is done; what it does fits that
            (2) sum_t y_itk = sum_t y_it,k-1 + d_ik + s_ik;  c_ik = c_i,k-1 - (all of it, if freed or thrown out) + n_ik + d_ik
            (3) s_ik = 1 where c_ik reaches p_i + sum_t y_it,k-1: a prompt thrown out is computed with what it had put out
            (4) sum_i ceil(c_ik / b) <= M;  sum_i (n_ik + d_ik) <= Q;  at most B hold KV
            (5) E_k - S_k >= every piece of the regime in force;  S_k >= E_k-1;  S_k >= a_i m_ik
            (6) redundant: steps and time up to a milestone hold the work done until then
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ortools.sat.python import cp_model

from optimizer.errors import InputError
from optimizer.formulations.steps_frame import Frame
from optimizer.formulations.steps_time import to_seconds
from optimizer.formulations.steps_trace import StepsObjective, one_after_another
from optimizer.formulations.steps_writer import StepsWriter, Values
from optimizer.problem.instance import Instance
from optimizer.problem.plan import StepsPlan

MOST_VARIABLES = 300_000
"""A larger model is refused: it would take all memory, and never be solved."""


@dataclass(frozen=True, slots=True)
class StepsModel:
    """The model, and how to read it.

    Attributes
    ----------
    model
        Minimises whole units, with the known plan as a hint.
    read
        Makes a plan of the values of a solution.
    known
        The plan that it starts from; no answer is worse.
    seconds_per_unit
        Makespan, or (weighted) mean latency or TTFT in seconds, per unit of the objective.
    is_exact
        Whether nothing was rounded. Otherwise every rate, arrival and weight was rounded down, times to `unit_s`: the
        optimum is then a lower bound for the engine, and the replay of the plan tells what it is worth.
    unit_s
        Length of the unit of time.
    steps
        Steps that the model has room for; no better schedule has more.
    """

    model: cp_model.CpModel
    read: Callable[[Values], StepsPlan]
    known: StepsPlan
    seconds_per_unit: float
    is_exact: bool
    unit_s: float
    steps: int


def build(
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
        Whether requests that could decode may skip steps with their KV kept.

    Raises
    ------
    InputError
        If the instance asks for more than the model can say, or is too large for it.

    Examples
    --------
    >>> from optimizer.problem import Engine, Requests, StepTime
    >>> engine = Engine(name="toy", kv_blocks=9, block_tokens=1, step_time=StepTime.affine(base_s=1.0))
    >>> requests = Requests.from_columns({"prompt_tokens": [2, 2], "output_tokens": [3, 3]})
    >>> built = build(Instance("two", requests, engine, "makespan"))
    >>> built.steps, built.is_exact, built.unit_s
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
    frame = Frame.of(instance, goal, known)
    size = frame.steps * int((20 + instance.requests.output_tokens).sum())
    if size > MOST_VARIABLES:
        raise InputError(
            f"the steps model would have {frame.steps:,} steps and some {size:,} variables (most: {MOST_VARIABLES:,}); "
            "give fewer or shorter requests, or a better known plan"
        )
    writer = StepsWriter(frame, preempt=preempt, hold=hold)
    writer.write()
    return StepsModel(
        writer.model,
        writer.read,
        known,
        to_seconds(1, frame.time.unit_ticks) / frame.parts,
        frame.is_exact,
        to_seconds(1, frame.time.unit_ticks),
        frame.steps,
    )

"""Finds lines below the step time that prove much: a small linear program for each target.

A line may be any affine function below every step's time (`optimizer.certificates.step_lines`). Which one proves most depends on
the work in question, so the program maximises the line's value of that work: all requests for the makespan, the
smallest k of them for the k-th completion.
"""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.certificates.step_lines import (
    FIELDS,
    Line,
    Work,
    corners,
    least_work,
    proves,
    recomputes,
    regimes,
    survives_preemption,
    unlimited,
)
from optimizer.problem import Instance
from optimizer.solvers.milp import load_pulp
from optimizer.units import TICKS_PER_SECOND

_PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Shares of the requests, the smallest first, that lines are sought for."""
_WEIGHT = 10**9
"""Weights of pieces are whole parts of this."""


def find_lines(instance: Instance, objective: str) -> list[Line]:
    """Find proved lines for an objective.

    Parameters
    ----------
    instance
        Requests and engine.
    objective
        As in `work_bound`.

    Returns
    -------
    list of Line
        Each is proved and survives preemption; at least one.

    Examples
    --------
    >>> from optimizer.problem import Engine, Requests, StepTime
    >>> engine = Engine(name="toy", kv_blocks=10, max_num_seqs=2, step_time=StepTime.affine(base_s=1.0))
    >>> requests = Requests.from_columns({"prompt_tokens": [16] * 4, "output_tokens": [11] * 4})
    >>> from optimizer.certificates.work import work_bound
    >>> instance = Instance("toy", requests, engine)
    >>> work_bound(instance, find_lines(instance, "makespan"), "makespan") >= 20  # 40 decodes on 2 seats
    True
    """
    work = least_work(instance)
    if objective == "ttft":
        work = [w._replace(steps=w.steps - w.decode_seqs, decode_seqs=0, decode_context=0) for w in work]
    found: dict[tuple[int, ...], Line] = {}
    for part in (1.0,) if objective == "makespan" else _PARTS:
        count = max(1, round(part * len(work)))
        chosen = sorted(work, key=_volume)[:count]
        for _ in range(2):
            line = best_line(instance, _total(chosen))
            found.setdefault(line.rates, line)
            # Which requests are the smallest depends on the line itself.
            chosen = sorted(work, key=lambda w: line.of(w._replace(steps=0)))[:count]
    return list(found.values())


def best_line(instance: Instance, target: Work) -> Line:
    """Find the line with the largest value of some work.

    Parameters
    ----------
    instance
        Its engine and limits; its lengths matter for what a preemption could save.
    target
        The work.
    """
    pulp = load_pulp()
    engine = instance.engine
    problem = pulp.LpProblem("line", pulp.LpMaximize)
    # Rates of very different sizes: each is measured in what it contributes to the target.
    unit = [1.0 / max(amount, 1) for amount in target]
    rates = [problem.add_variable(f"rate{x}", 0) for x in range(len(FIELDS))]
    problem += pulp.lpSum(rate for rate, amount in zip(rates, target, strict=True) if amount)
    weights = []
    for number, regime in enumerate(regimes(engine)):
        own = [problem.add_variable(f"weight{number}_{i}", 0, 1) for i in range(len(regime.pieces))]
        weights.append(own)
        problem += pulp.lpSum(own) == 1
        seconds = [[rate / TICKS_PER_SECOND for rate in piece] for piece in regime.pieces]
        for corner in {*corners(regime, engine)}:
            cost = [sum(r * a for r, a in zip(piece, corner, strict=True)) for piece in seconds]
            line = pulp.lpSum(u * a * rate for u, a, rate in zip(unit, corner, rates, strict=True) if a)
            problem += pulp.lpSum(c * w for c, w in zip(cost, own, strict=True)) >= line
        for x in unlimited(engine):
            cost = [piece[x] / unit[x] for piece in seconds]
            problem += pulp.lpSum(c * w for c, w in zip(cost, own, strict=True)) >= rates[x]
    for saved, again in recomputes(instance):
        more = (u * (b - a) * rate for u, a, b, rate in zip(unit, saved, again, rates, strict=True))
        problem += pulp.lpSum(more) >= 0
    problem.solve(pulp.HiGHS(msg=False, threads=1))
    values = [max(0.0, (rate.value() or 0.0) * u) for rate, u in zip(rates, unit, strict=True)]
    whole = tuple(tuple(max(0, round((w.value() or 0.0) * _WEIGHT)) for w in own) for own in weights)
    return _rounded(values, whole, instance)


def _rounded(values: Sequence[float], weights: tuple[tuple[int, ...], ...], instance: Instance) -> Line:
    """Make the solver's numbers whole, and a proof: a line a little lower is still a good one."""
    for lower in (0.0, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3):
        line = Line(tuple(round(v * (1 - lower) * TICKS_PER_SECOND) for v in values), weights)
        if proves(line, instance.engine) is None and survives_preemption(line, instance):
            return line
    # A step takes some time, whatever it computes: the weakest line of all.
    first = tuple(tuple(int(i == 0) for i in range(len(own))) for own in weights)
    least = min(piece[0] for regime in regimes(instance.engine) for piece in regime.pieces[:1])
    return Line((least, *(0 for _ in FIELDS[1:])), first)


def _volume(work: Work) -> int:
    return work.decode_context + work.prefill_context


def _total(work: Sequence[Work]) -> Work:
    return Work(max(w.steps for w in work), *(sum(w[x] for w in work) for x in range(1, len(FIELDS))))

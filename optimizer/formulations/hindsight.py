"""`hindsight`: the time-indexed program of KV ramps (mathematics: models/formulations/hindsight.md).

The program by which arXiv 2502.07115 measures online algorithms, in whole rounds: total latency under the limit of
KV memory, without preemption. Requests that nothing tells apart are one kind.

Sets        g in G kinds; t in 0..T rounds
Data        m_g requests of the kind, o_g rounds, a_g arrival, w_g weight, h_g(j) blocks held in the j-th round (from 0);
            T_g last useful start
Variables   x_gt whole, 0..m_g: requests of kind g that start in round t, a_g <= t <= T_g
Objective   min sum_gt w_g (t + o_g - a_g) x_gt
Constraints (1) sum_t x_gt = m_g                            every request starts once
            (2) sum_g sum_k h_g(t - k) x_gk <= M  for all t, k from t - o_g + 1 to t      KV memory
            (3) sum_g sum_k x_gk <= B             for all t, the same k                   seats, where they can bind
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.errors import InputError
from optimizer.formulations.model import MilpModel
from optimizer.problem.columns import Ints
from optimizer.problem.ramps import Ramps
from optimizer.solvers.milp import load_pulp
from optimizer.solvers.ramp_greedy import check_startable, greedy

if TYPE_CHECKING:
    from optimizer.solvers.milp import MilpValues


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    rows: list[int]
    held: list[int]
    arrival: int
    weight: float
    last: int

    @property
    def rounds(self) -> int:
        return len(self.held)


def latency(ramps: Ramps, start: Ints) -> float:
    """Give the weighted sum of latencies, in rounds: completion less arrival.

    >>> latency(Ramps.of([2, 2], [3, 1], capacity=5, arrival=[0, 2]), np.array([0, 3]))
    5.0
    """
    return ramps.total_completion(start) - float((ramps.weight * ramps.arrival).sum())


def build(ramps: Ramps, known: Ints | None = None) -> MilpModel[Ints]:
    """Write the model.

    Parameters
    ----------
    ramps
        The problem.
    known
        A feasible schedule (starting rounds): the warm start, and what says how late a start can be of use;
        by default MC-SF's.

    Returns
    -------
    MilpModel
        Its objective is `latency`; it reads starting rounds.

    Raises
    ------
    InputError
        If a request does not fit alone, or `known` is not feasible.

    Examples
    --------
    >>> from optimizer.solvers import milp
    >>> model = build(Ramps.of([2, 2, 2], [3, 1, 2], capacity=5))
    >>> done = milp.run(model.problem, model.read)
    >>> done.value, done.solution.tolist()
    (7.0, [1, 0, 0])
    """
    check_startable(ramps)
    if known is None:
        known = greedy(ramps, np.argsort(ramps.rounds, kind="stable"))
    elif not ramps.feasible(known):
        raise InputError("the known schedule is not feasible; leave it out, or give one that is")
    pulp = load_pulp()
    kinds = _kinds(ramps, known)
    problem = pulp.LpProblem("hindsight")
    x: list[dict[int, Any]] = []
    for g, kind in enumerate(kinds):
        started = np.bincount(known[kind.rows], minlength=kind.last + 1).tolist()
        x.append({})
        for t in range(kind.arrival, kind.last + 1):
            x[g][t] = variable = problem.add_variable(f"x_{g}_{t}", 0, len(kind.rows), cat="Integer")
            variable.setInitialValue(started[t])
    problem += (
        pulp.LpAffineExpression(
            [
                (variable, kind.weight * (t + kind.rounds - kind.arrival))
                for kind, row in zip(kinds, x, strict=True)
                for t, variable in row.items()
            ]
        ),
        "latency",
    )
    for g, kind in enumerate(kinds):
        problem += pulp.lpSum(x[g].values()) == len(kind.rows), f"starts_once_{g}"
    _add_limits(problem, pulp, ramps, kinds, x)
    return MilpModel(problem, lambda value: _read(value, ramps, kinds, x))


def _add_limits(problem: Any, pulp: Any, ramps: Ramps, kinds: list[_Kind], x: list[dict[int, Any]]) -> None:
    horizon = max(kind.last + kind.rounds for kind in kinds)
    blocks: list[list[tuple[Any, int]]] = [[] for _ in range(horizon)]
    for kind, row in zip(kinds, x, strict=True):
        for t, variable in row.items():
            for j, held in enumerate(kind.held):
                blocks[t + j].append((variable, held))
    for t, terms in enumerate(blocks):
        if terms:
            problem += pulp.LpAffineExpression(terms) <= ramps.capacity, f"memory_{t}"
            if ramps.seats < len(ramps):
                problem += pulp.lpSum(variable for variable, _ in terms) <= ramps.seats, f"seats_{t}"


def _kinds(ramps: Ramps, known: Ints) -> list[_Kind]:
    """Group equal requests, each group with its last useful start.

    A better schedule leaves no request later than the known total less what all the others cost at least. And one
    that is shifted to the left where it can be has no round, between the last arrival and the last start, in
    which nobody runs.
    """
    least = ramps.weight * ramps.rounds
    spare = latency(ramps, known) - float(least.sum())
    busy = int(ramps.arrival.max()) + int(ramps.rounds.sum())
    table = np.stack([ramps.prompt, ramps.rounds, ramps.arrival], axis=1).astype(np.float64)
    table = np.column_stack([table, ramps.weight])
    _, first, kind_of = np.unique(table, axis=0, return_index=True, return_inverse=True)
    kinds = []
    for g, i in enumerate(first.tolist()):
        prompt, rounds, arrival = int(ramps.prompt[i]), int(ramps.rounds[i]), int(ramps.arrival[i])
        weight = float(ramps.weight[i])
        last = busy - rounds
        if weight > 0:
            last = min(last, arrival + int(spare / weight + 1e-6))
        held = (-(-(prompt + np.arange(rounds)) // ramps.block_tokens)).tolist()
        rows = np.flatnonzero(kind_of.ravel() == g).tolist()
        # A known schedule may idle where it need not; it stays within the model all the same.
        kinds.append(_Kind(rows, held, arrival, weight, max(last, int(known[rows].max()))))
    return kinds


def _read(value: MilpValues, ramps: Ramps, kinds: list[_Kind], x: list[dict[int, Any]]) -> Ints:
    start = np.zeros(len(ramps), np.int64)
    for kind, row in zip(kinds, x, strict=True):
        start[kind.rows] = [t for t, variable in row.items() for _ in range(round(value(variable)))]
    return start

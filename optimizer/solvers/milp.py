"""A PuLP problem through HiGHS, with CBC as second opinion; PuLP's own word on the outcome is not asked.

PuLP 3.3 calls a run that met its time limit "Optimal": the model is taken from it, the answer never.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from optimizer.errors import InputError
from optimizer.problem.columns import Floats
from optimizer.solvers.cbc import CbcTask
from optimizer.solvers.drive import Asked, drive
from optimizer.solvers.highs import HighsTask
from optimizer.solvers.matrix import Matrix
from optimizer.solvers.result import OnBound, OnIncumbent, Solved
from optimizer.solvers.sanity import SolverError, installed, refuse_bad_pair
from optimizer.solvers.task import Task

if TYPE_CHECKING:
    import pulp

T = TypeVar("T")

MilpValues = Callable[["pulp.LpVariable | pulp.LpAffineExpression"], float]
"""The value of a variable or a linear expression in a solution; integers are exactly whole."""


def load_pulp() -> ModuleType:
    """Import PuLP, after a look at what it would drag in.

    Raises
    ------
    SolverError
        If PuLP is missing, or the HiGHS that it imports must not be in a process with OR-Tools.
    """
    refuse_bad_pair()
    if installed("pulp") is None:
        raise SolverError('PuLP is not installed; install it: python -m pip install "pulp>=3.3,<4"')
    import pulp

    module: ModuleType = pulp
    return module


def run(
    problem: pulp.LpProblem,
    read: Callable[[MilpValues], T],
    *,
    time_limit_s: float | None = None,
    threads: int = 1,
    seed: int = 0,
    node_limit: int | None = None,
    engine: Literal["highs", "cbc"] = "highs",
    on_incumbent: OnIncumbent[T] | None = None,
    on_bound: OnBound | None = None,
    isolated: bool = False,
    memory_bytes: int | None = None,
) -> Solved[T]:
    """Minimise a PuLP problem.

    Parameters
    ----------
    problem
        Initial values of its variables (`setInitialValue`) are the warm start; where all are given and the
        constraints hold, no answer will be worse.
    read
        Makes the solution of the values of the problem's variables.
    time_limit_s
        Wall time; None: no limit.
    threads
        Of the search.
    seed
        Of the search, from 0 on.
    node_limit
        Most nodes of the search tree; a run with this limit in place of the clock repeats itself (HiGHS).
    engine
        `highs`, or `cbc` for a second opinion: it tells no progress, and its bound only at the end.
    on_incumbent, on_bound
        Told progress, in this thread; True asks the solver to stop.
    isolated
        In a process of its own, so that a crash of the solver is an answer and no end of everything (0.4 s more).
    memory_bytes
        Most memory of that process.

    Returns
    -------
    Solved
        Every solution is checked against the rows before it is believed. Ctrl-C ends the search and keeps the
        best; a second one is raised.

    Raises
    ------
    InputError
        If the problem is no minimisation of linear rows, or a number is out of range.

    Examples
    --------
    >>> pulp = load_pulp()
    >>> problem = pulp.LpProblem("toy")
    >>> x = problem.add_variable("x", 0, 10, cat="Integer")
    >>> problem += 1 * x
    >>> problem += 3 * x >= 10, "enough"
    >>> done = run(problem, lambda value: value(x))
    >>> done.status.value, done.solution, done.bound
    ('optimal', 4.0, 4.0)
    """
    if threads < 1:
        raise InputError(f"threads is {threads}; expected a whole number >= 1")
    if memory_bytes is not None and engine == "cbc":
        raise InputError("memory_bytes limits HiGHS alone; leave it out for CBC")
    program = Matrix.from_pulp(problem)
    variables = problem.variables()
    place = {variable.name: i for i, variable in enumerate(variables)}
    start = np.array([np.nan if v.varValue is None else v.varValue for v in variables], np.float64)
    warm = start if np.isfinite(start).any() else None
    task: Task
    if engine == "highs":
        task = HighsTask(program, warm, time_limit_s, threads, seed, node_limit)
        name = f"HiGHS {version('highspy')}" if installed("highspy") else "HiGHS"
    else:
        task = CbcTask(program, warm, time_limit_s, threads, seed, node_limit)
        name = "CBC (PuLP's)"
    asked: Asked[T] = Asked(
        name,
        seed,
        time_limit_s,
        program.value_of,
        lambda values: read(_values(program.rounded(values), place)),
        on_incumbent,
        on_bound,
        isolated and engine == "highs",  # CBC is a process of its own already
        memory_bytes,
    )
    return drive(task, asked, start if np.isfinite(start).all() else None)


def _values(values: Floats, place: dict[str, int]) -> MilpValues:
    def value(of: Any) -> float:
        if hasattr(of, "items"):
            return float(sum(c * values[place[v.name]] for v, c in of.items()) + of.constant)
        return float(values[place[of.name]])

    return value

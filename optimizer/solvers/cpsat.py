"""OR-Tools CP-SAT: run a model, and believe only what can be checked."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from optimizer.errors import InputError
from optimizer.solvers.drive import Asked, check_limit, drive
from optimizer.solvers.result import OnBound, OnIncumbent, Solved
from optimizer.solvers.sanity import SolverError, installed, refuse_bad_pair
from optimizer.solvers.task import Emit, Ended, Found, Nonsense, Raised

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

T = TypeVar("T")

CpValues = Callable[["cp_model.LinearExprT"], int]
"""The value of a variable, a literal or a linear expression in a solution."""


def load_cp_model() -> ModuleType:
    """Import OR-Tools' CP-SAT.

    Raises
    ------
    SolverError
        If OR-Tools is missing, or stands beside a HiGHS that it must not be in a process with.
    """
    if installed("ortools") is None:
        raise SolverError('OR-Tools is not installed; install it: python -m pip install "ortools==9.15.*"')
    if installed("highspy") is not None:
        refuse_bad_pair()
    from ortools.sat.python import cp_model

    module: ModuleType = cp_model
    return module


def run(
    model: cp_model.CpModel,
    read: Callable[[CpValues], T],
    *,
    time_limit_s: float | None = None,
    workers: int = 1,
    seed: int = 0,
    deterministic: bool = False,
    on_incumbent: OnIncumbent[T] | None = None,
    on_bound: OnBound | None = None,
    isolated: bool = False,
    memory_bytes: int | None = None,
) -> Solved[T]:
    """Minimise a CP-SAT model.

    Parameters
    ----------
    model
        With an objective to minimise, or none; its hints are the warm start. Where all variables have one and the
        constraints hold, no answer will be worse.
    read
        Makes the solution of the values of the model's variables.
    time_limit_s
        Wall time; with `deterministic`, CP-SAT's deterministic time, which is about as long. None: no limit.
    workers
        Threads of the search.
    seed
        Of the search, from 0 on.
    deterministic
        The same answer at every run: no wall clock, and several workers take turns.
    on_incumbent, on_bound
        Told progress, in this thread; True asks the solver to stop.
    isolated
        In a process of its own, so that a crash of the solver is an answer and no end of everything (0.7 s more).
    memory_bytes
        Most memory of that process.

    Returns
    -------
    Solved
        Ctrl-C ends the search and keeps the best; a second one is raised.

    Raises
    ------
    InputError
        If the model is invalid or maximises, or a number is out of range.

    Examples
    --------
    >>> from ortools.sat.python import cp_model
    >>> model = cp_model.CpModel()
    >>> x = model.new_int_var(0, 10, "x")
    >>> _ = model.add(3 * x >= 10)
    >>> model.minimize(x)
    >>> done = run(model, lambda value: value(x))
    >>> done.status.value, done.solution, done.bound
    ('optimal', 4, 4.0)
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; expected a whole number >= 1")
    check_limit(time_limit_s)
    if complaint := model.validate():
        raise InputError(f"the CP-SAT model is invalid: {complaint}")
    if _maximises(model):
        raise InputError("the CP-SAT model maximises; minimise the negative, or count what is missed")
    task = CpSatTask(model, time_limit_s, workers, seed, deterministic)
    judge = _Judge(model)
    asked: Asked[T] = Asked(
        f"CP-SAT {version('ortools')}",
        seed,
        # Deterministic seconds say nothing about the clock, so nobody is killed for being late.
        None if deterministic else time_limit_s,
        judge,
        lambda values: read(_values(values)),
        on_incumbent,
        on_bound,
        isolated,
        memory_bytes,
    )
    return drive(task, asked, _hinted(model))


class CpSatTask:
    """A model with its parameters; pickled as text, the one form in which CP-SAT reads models back."""

    def __init__(
        self,
        model: cp_model.CpModel,
        time_limit_s: float | None,
        workers: int,
        seed: int,
        deterministic: bool,
    ) -> None:
        self.model = model
        self.time_limit_s, self.workers, self.seed, self.deterministic = (
            time_limit_s,
            workers,
            seed,
            deterministic,
        )
        self._solver: cp_model.CpSolver | None = None
        self._stopping = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _from_text, (
            str(self.model.proto),
            self.time_limit_s,
            self.workers,
            self.seed,
            self.deterministic,
        )

    def run(self, emit: Emit) -> None:
        """Solve, and tell every event."""
        from ortools.sat.python import cp_model

        task = self
        optimises = self.model.has_objective()

        class Told(cp_model.CpSolverSolutionCallback):
            def on_solution_callback(self) -> None:
                response = self.response_proto
                bound = response.best_objective_bound if optimises else 0.0
                emit(Found(list(response.solution), response.objective_value if optimises else 0.0, bound))
                task._stop_if_asked()

        def bound(value: float) -> None:
            emit(Raised(value))
            task._stop_if_asked()

        self._solver = solver = cp_model.CpSolver()
        if optimises:
            solver.best_bound_callback = bound
        self._set(solver.parameters)
        status = solver.solve(self.model, Told())
        ended = _ended(solver, status, optimises)
        if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            # Told before, but Ctrl-C may have fallen into the telling.
            value = solver.objective_value if optimises else 0.0
            emit(Found(list(solver.response_proto.solution), value, ended.bound))
        emit(ended)

    def _set(self, parameters: Any) -> None:
        parameters.num_workers = self.workers
        parameters.random_seed = self.seed
        parameters.catch_sigint_signal = False  # Ctrl-C is the caller's
        if self.deterministic:
            parameters.interleave_search = self.workers > 1
            if self.time_limit_s is not None:
                parameters.max_deterministic_time = self.time_limit_s
        elif self.time_limit_s is not None:
            parameters.max_time_in_seconds = self.time_limit_s

    def stop(self) -> None:
        """Ask the search to end."""
        self._stopping = True
        if self._solver is not None:
            self._solver.stop_search()

    def _stop_if_asked(self) -> None:
        # A stop that came before the search had begun would else be lost.
        if self._stopping and self._solver is not None:
            self._solver.stop_search()


def _from_text(text: str, *options: Any) -> CpSatTask:
    from ortools.sat.python import cp_model
    from ortools.sat.python.cp_model_helper import CpModelProto

    proto = CpModelProto()
    proto.parse_text_format(text)
    return CpSatTask(cp_model.CpModel(proto), *options)


def _ended(solver: cp_model.CpSolver, status: Any, optimises: bool) -> Ended:
    from ortools.sat.python import cp_model

    said = solver.status_name(status)
    # The status first: without a solution CP-SAT's values and bounds are garbage that looks like zeros.
    if status == cp_model.OPTIMAL:
        return Ended("optimal", solver.best_objective_bound if optimises else 0.0, said)
    if status == cp_model.INFEASIBLE:
        return Ended("infeasible", None, said)
    if status in (cp_model.FEASIBLE, cp_model.UNKNOWN):
        return Ended("limit", None, said)
    return Ended("failed", None, f"CP-SAT says {said}: {solver.solution_info()}")


def _hinted(model: cp_model.CpModel) -> list[int] | None:
    """Give the hints as a solution, if they are complete: large models lose them in presolve."""
    hint = model.proto.solution_hint
    given = dict(zip(hint.vars, hint.values, strict=True))
    values = []
    for index, variable in enumerate(model.proto.variables):
        domain = variable.domain
        value = domain[0] if len(domain) == 2 and domain[0] == domain[1] else given.get(index)
        if value is None:
            return None
        values.append(int(value))
    return values


def _maximises(model: cp_model.CpModel) -> bool:
    proto = model.proto
    if proto.has_floating_point_objective():
        return bool(proto.floating_point_objective.maximize)
    return bool(model.has_objective() and proto.objective.scaling_factor < 0)


def _values(values: list[int]) -> CpValues:
    from ortools.sat.python.cp_model_helper import CpSolverResponse, ResponseHelper

    response = CpSolverResponse()
    response.solution.extend(values)
    return lambda expression: int(ResponseHelper.value(response, expression))


class _Judge:
    """Checks a claimed solution: domains and objective here, the constraints by a model in which nothing is free.

    With every variable fixed and presolve off CP-SAT has nothing to search: it only evaluates. That takes a
    millisecond where the search takes minutes.
    """

    def __init__(self, model: cp_model.CpModel) -> None:
        from ortools.sat.python import cp_model

        self._domains = [list(variable.domain) for variable in model.proto.variables]
        self._fixed = model.clone()
        self._fixed.clear_hints()  # type: ignore[no-untyped-call]
        self._objective = _objective_of(model)
        self._fixed.clear_objective()  # type: ignore[no-untyped-call]
        self._solver = cp_model.CpSolver()
        self._solver.parameters.num_workers = 1
        self._solver.parameters.cp_model_presolve = False
        self._solver.parameters.catch_sigint_signal = False

    def __call__(self, values: list[int]) -> float:
        if len(values) != len(self._domains):
            raise Nonsense(f"{len(values)} values for {len(self._domains)} variables")
        variables = self._fixed.proto.variables
        for index, (value, domain) in enumerate(zip(values, self._domains, strict=True)):
            if not any(low <= value <= high for low, high in zip(domain[::2], domain[1::2], strict=True)):
                raise Nonsense(f"variable {index} has value {value}, outside its domain {domain}")
            fixed = variables[index].domain
            fixed.clear()
            fixed.extend([value, value])
        status = self._solver.solve(self._fixed)
        if self._solver.status_name(status) not in ("OPTIMAL", "FEASIBLE"):
            raise Nonsense("a claimed solution violates the constraints")
        factor, offset, terms = self._objective
        return float(factor * (sum(coefficient * values[index] for index, coefficient in terms) + offset))


def _objective_of(model: cp_model.CpModel) -> tuple[float, float, list[tuple[int, float]]]:
    """Scaling factor, offset, and terms by index of a variable (a negative index would be a literal's negation)."""
    proto = model.proto
    if proto.has_floating_point_objective():
        real = proto.floating_point_objective
        return 1.0, real.offset, list(zip(real.vars, real.coeffs, strict=True))
    if not model.has_objective():
        return 1.0, 0.0, []
    whole = proto.objective
    terms = [
        (index if index >= 0 else -index - 1, coefficient if index >= 0 else -coefficient)
        for index, coefficient in zip(whole.vars, whole.coeffs, strict=True)
    ]
    return whole.scaling_factor or 1.0, whole.offset, terms

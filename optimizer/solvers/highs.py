"""HiGHS, in this process: a task for `drive`."""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.problem.columns import Floats
from optimizer.solvers import sanity
from optimizer.solvers.matrix import Matrix
from optimizer.solvers.task import Emit, Ended, Found, Raised

if TYPE_CHECKING:
    import highspy

# HiGHS has one scheduler of threads for the process; two runs at a time would have to agree on its size.
_ALONE = threading.Lock()


class HighsTask:
    """A program and how to solve it.

    Parameters
    ----------
    program
        What to minimise.
    start
        A number per variable, NaN where unknown; or None.
    time_limit_s, threads, seed, node_limit
        As in `milp.run`.
    """

    def __init__(
        self,
        program: Matrix,
        start: Floats | None,
        time_limit_s: float | None,
        threads: int,
        seed: int,
        node_limit: int | None,
    ) -> None:
        self.program, self.start = program, start
        self.time_limit_s, self.threads, self.seed, self.node_limit = time_limit_s, threads, seed, node_limit
        self._stopping = False
        self._told: float | None = None

    def run(self, emit: Emit) -> None:
        """Solve, and tell every event."""
        with _ALONE:
            _trust()
            import highspy

            solver = _loaded(self.program, self.threads, self.seed)
            if self.time_limit_s is not None:
                solver.setOptionValue("time_limit", float(self.time_limit_s))
            if self.node_limit is not None:
                solver.setOptionValue("mip_max_nodes", self.node_limit)
            if self.start is not None:
                given = np.flatnonzero(np.isfinite(self.start)).astype(np.int32)
                solver.setSolution(len(given), given, self.start[given])
            kinds = highspy.cb.HighsCallbackType
            solver.setCallback(
                lambda kind, _message, out, back, _data: self._hear(kind, out, back, emit), None
            )
            for kind in (
                kinds.kCallbackMipImprovingSolution,
                kinds.kCallbackMipInterrupt,
                kinds.kCallbackSimplexInterrupt,
                kinds.kCallbackIpmInterrupt,
            ):
                solver.startCallback(kind)
            solver.run()
            _conclude(solver, self.program, emit)

    def stop(self) -> None:
        """Ask the search to end."""
        self._stopping = True

    def _hear(self, kind: Any, out: Any, back: Any, emit: Emit) -> None:
        import highspy

        kinds = highspy.cb.HighsCallbackType
        if kind == kinds.kCallbackMipImprovingSolution:
            emit(Found(np.array(out.mip_solution), out.objective_function_value, _finite(out.mip_dual_bound)))
            return
        if kind == kinds.kCallbackMipInterrupt:
            bound = _finite(out.mip_dual_bound)
            if bound is not None and (self._told is None or bound > self._told + 1e-9 * abs(self._told)):
                self._told = bound
                emit(Raised(bound))
        back.user_interrupt = self._stopping


def _loaded(program: Matrix, threads: int, seed: int) -> highspy.Highs:
    import highspy

    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(program.cost), len(program.row_low)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = program.cost, program.low, program.high
    lp.row_lower_, lp.row_upper_ = program.row_low, program.row_high
    lp.offset_ = program.offset
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.num_col_, lp.a_matrix_.num_row_ = len(program.cost), len(program.row_low)
    lp.a_matrix_.start_, lp.a_matrix_.index_ = program.starts, program.columns
    lp.a_matrix_.value_ = program.entries
    if program.whole.any():
        kinds = highspy.HighsVarType
        lp.integrality_ = [kinds.kInteger if whole else kinds.kContinuous for whole in program.whole]
    highspy.Highs.resetGlobalScheduler(True)
    solver = highspy.Highs()
    for option, value in (
        ("output_flag", False),
        ("threads", threads),
        ("random_seed", seed),
        ("mip_rel_gap", 0.0),  # HiGHS says "optimal" at 1e-4 by default
    ):
        if solver.setOptionValue(option, value) != highspy.HighsStatus.kOk:
            raise ValueError(f"HiGHS refuses {option} = {value}")
    if solver.passModel(lp) == highspy.HighsStatus.kError:
        raise ValueError("HiGHS refuses the model")
    return solver


def _conclude(solver: highspy.Highs, program: Matrix, emit: Emit) -> None:
    """Tell the last solution and the end; HiGHS's own status first."""
    import highspy

    kinds = highspy.HighsModelStatus
    status, info = solver.getModelStatus(), solver.getInfo()
    said = f"HiGHS says {solver.modelStatusToString(status)}"
    if status == kinds.kInfeasible:
        emit(Ended("infeasible", None, said))
        return
    linear = info.objective_function_value if status == kinds.kOptimal else None
    bound = _finite(info.mip_dual_bound) if program.whole.any() else linear
    # A linear program that was stopped may stand at a point outside its rows.
    if info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible:
        values = np.array(solver.getSolution().col_value)
        emit(Found(values, info.objective_function_value, bound))
    if status == kinds.kOptimal:
        emit(Ended("optimal", bound, said))
    elif status in (kinds.kTimeLimit, kinds.kInterrupt, kinds.kHighsInterrupt, kinds.kSolutionLimit):
        emit(Ended("limit", bound, said))
    elif status in (kinds.kUnbounded, kinds.kUnboundedOrInfeasible):
        emit(Ended("failed", None, f"{said}; give every variable that lowers the objective a limit"))
    else:
        emit(Ended("failed", None, said))


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


@cache
def _trust() -> None:
    """Check HiGHS once in a process."""
    sanity.refuse_bad_pair()
    sanity.check_battery(_optimum)


def _optimum(program: Matrix) -> float | None:
    events: list[Any] = []
    solver = _loaded(program, 1, 0)
    solver.run()
    _conclude(solver, program, events.append)
    if events[-1].outcome == "infeasible":
        return None
    if events[-1].outcome != "optimal":
        raise sanity.SolverError(f"HiGHS cannot be trusted here: {events[-1].message} for a tiny program")
    return program.value_of(events[0].values)

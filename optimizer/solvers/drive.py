"""Run a solver beside the caller and judge what it says.

A solver is asked, watched and stopped in one way, whatever it is: a `Task` runs somewhere else and tells events;
the caller's thread checks every solution against the model, calls back, minds the clock and Ctrl-C, and draws
the conclusion. A solver that dies is an event like others.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from optimizer.errors import InputError
from optimizer.problem.gap import ROUND_OFF
from optimizer.solvers.result import Incumbent, OnBound, OnIncumbent, Solved, Status, StoppedBy, meets
from optimizer.solvers.task import Ended, Found, Nonsense, Raised, Task
from optimizer.solvers.worker import ProcessWorker, ThreadWorker, Worker

T = TypeVar("T")

_GRACE_S = 5.0
"""How long a process that was asked to stop, or whose limit is over, may go on before it is killed."""

_TOLD_ROUGHLY = 1e-4
"""Relative difference of a told value from ours: a solver's integers are whole only within its tolerance."""


@dataclass(frozen=True, slots=True)
class Asked(Generic[T]):
    """What a run is asked for.

    Attributes
    ----------
    solver
        Name and version.
    seed, time_limit_s
        That the task was made with.
    judge
        From a number per variable to the value of the objective; raises `Nonsense` where a constraint is violated.
    read
        From a number per variable to the solution.
    on_incumbent, on_bound
        Called in the caller's thread.
    isolated
        In a process of its own.
    memory_bytes
        Most memory of that process.
    """

    solver: str
    seed: int
    time_limit_s: float | None
    judge: Callable[[Any], float]
    read: Callable[[Any], T]
    on_incumbent: OnIncumbent[T] | None = None
    on_bound: OnBound | None = None
    isolated: bool = False
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        check_limit(self.time_limit_s)
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed is {self.seed}; expected a whole number from 0 to 2147483647")
        if self.memory_bytes is not None and not self.isolated:
            raise InputError("memory_bytes needs isolated=True: a thread has no memory of its own to limit")


def check_limit(time_limit_s: float | None) -> None:
    """Refuse a limit of time that is none.

    Raises
    ------
    InputError
        If it is not above 0: CP-SAT takes -1 for an answer.
    """
    if time_limit_s is not None and not time_limit_s > 0:
        raise InputError(f"time_limit_s is {time_limit_s}; expected seconds > 0, or None for no limit")


def drive(task: Task, asked: Asked[T], known: Any = None) -> Solved[T]:
    """Run a task to its end and say what is known then.

    Parameters
    ----------
    task
        The model.
    asked
        What to do with its events.
    known
        A solution to begin with (a number per variable); ignored where the model refuses it.

    Returns
    -------
    Solved
        `failed` where the solver broke or said what cannot be: its last sound solution is in it.
    """
    return _Run(task, asked, known).result()


class _Run(Generic[T]):
    def __init__(self, task: Task, asked: Asked[T], known: Any) -> None:
        self._asked = asked
        self._began = time.perf_counter()
        self._best: Incumbent[T] | None = None
        self._bound: float | None = None
        self._asked_to_stop: StoppedBy | None = None
        self._nonsense = ""
        self._worker: Worker | None = None  # none yet while a known solution is told
        if known is not None:
            with contextlib.suppress(Nonsense):
                self._accept(Found(known, asked.judge(known), None))
        worker = ProcessWorker(task, asked.memory_bytes) if asked.isolated else ThreadWorker(task)
        self._worker = worker
        if self._asked_to_stop is not None:
            worker.stop()  # the known solution was good enough
        try:
            self._ended = self._watch(worker)
        except BaseException:
            # A callback raised, or a second Ctrl-C: nobody waits for the answer any more.
            worker.abandon()
            raise

    def _watch(self, worker: Worker) -> Ended:
        while True:
            try:
                event = worker.next_event(self._patience())
                if event is None:
                    worker.abandon()
                    return Ended("limit", None, "it did not stop when asked to and was killed")
                if isinstance(event, Ended):
                    return event
                self._take(event)
            except KeyboardInterrupt:
                if self._asked_to_stop == "interrupted":
                    raise
                self._stop("interrupted")

    def _patience(self) -> float | None:
        """How long a process of its own may still be silent; a thread cannot be killed, so wait for it."""
        limit = self._asked.time_limit_s
        if self._asked_to_stop is not None:
            return _GRACE_S
        if limit is None:
            return None
        return max(0.0, self._began + 1.1 * limit + _GRACE_S - time.perf_counter())

    def _take(self, event: Found | Raised) -> None:
        if event.bound is not None and (self._bound is None or event.bound > self._bound):
            self._bound = event.bound
            if self._asked.on_bound is not None and self._asked.on_bound(event.bound):
                self._stop("callback")
        if isinstance(event, Found):
            try:
                self._accept(event)
            except Nonsense as refuted:
                self._nonsense = self._nonsense or str(refuted)
                self._stop("error")

    def _accept(self, found: Found) -> None:
        value = self._asked.judge(found.values)
        if abs(value - found.value) > _TOLD_ROUGHLY * max(1.0, abs(value)):
            raise Nonsense(f"a solution of value {value} was called one of value {found.value}")
        if self._best is not None and value >= self._best.value:
            return
        seconds = time.perf_counter() - self._began
        self._best = Incumbent(value, self._bound, seconds, self._asked.read(found.values))
        if self._asked.on_incumbent is not None and self._asked.on_incumbent(self._best):
            self._stop("callback")

    def _stop(self, why: StoppedBy) -> None:
        if self._asked_to_stop is None or why == "interrupted":
            self._asked_to_stop = why
        if self._worker is not None:
            self._worker.stop()

    def result(self) -> Solved[T]:
        ended, best = self._ended, self._best
        value = None if best is None else best.value
        bound = max((b for b in (self._bound, ended.bound) if b is not None), default=None)
        wrong = self._nonsense or _contradiction(ended, value, bound)
        message = ended.message
        stopped_by: StoppedBy
        if wrong or ended.outcome == "failed":
            # Who says one wrong thing is not believed the next.
            status, stopped_by, bound = Status.FAILED, "error", None if wrong else bound
            message = f"{self._asked.solver} returned nonsense: {wrong}" if wrong else ended.message
        elif ended.outcome == "infeasible":
            status, stopped_by, bound = Status.INFEASIBLE, "proof", None
        elif ended.outcome == "optimal" and meets(value, bound):
            status, stopped_by = Status.OPTIMAL, "proof"
        else:
            status = Status.UNKNOWN if best is None else Status.FEASIBLE
            stopped_by = self._asked_to_stop or "time"
            if ended.outcome == "optimal":
                message = f"called optimal at value {value} and bound {bound}, which differ; {message}"
        return Solved(
            status,
            value,
            bound,
            None if best is None else best.solution,
            time.perf_counter() - self._began,
            stopped_by,
            self._asked.solver,
            self._asked.seed,
            message,
        )


def _contradiction(ended: Ended, value: float | None, bound: float | None) -> str:
    if ended.outcome == "optimal" and value is None:
        return "it says 'optimal' and shows no solution"
    if ended.outcome == "infeasible" and value is not None:
        return f"it says 'infeasible' beside a solution of value {value}"
    if value is not None and bound is not None and bound - value > ROUND_OFF * max(1.0, abs(value)):
        return f"its bound {bound} is above a solution's value {value}"
    return ""

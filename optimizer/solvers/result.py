"""What a solver answers: one type for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Literal, TypeVar

from optimizer.problem.gap import ROUND_OFF, gap

T = TypeVar("T")

StoppedBy = Literal["proof", "time", "interrupted", "callback", "error"]
"""Why a solver ended: it proved its answer, a limit was reached, Ctrl-C, a callback asked for it, or it broke."""


class Status(StrEnum):
    """What a solver knows at its end.

    `optimal`: a solution, and a proof that none is better. `feasible`: a solution. `infeasible`: a proof that there
    is none. `unknown`: nothing yet. `failed`: the solver broke; what it had found before may still be there.
    """

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNKNOWN = "unknown"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Incumbent(Generic[T]):
    """A solution that is better than all before it, told while the solver runs.

    Attributes
    ----------
    value
        Of the objective.
    bound
        Lower bound at that moment; None where none is known.
    seconds
        Wall time since the start.
    solution
        As the formulation reads it.
    """

    value: float
    bound: float | None
    seconds: float
    solution: T


OnIncumbent = Callable[[Incumbent[T]], bool | None]
"""Called at each better solution, while the solver waits; True asks it to stop."""

OnBound = Callable[[float], bool | None]
"""Called at each better lower bound; True asks the solver to stop."""


@dataclass(frozen=True, slots=True)
class Solved(Generic[T]):
    """The answer of a solver to a minimisation.

    Attributes
    ----------
    status
        What is known.
    value
        Of the objective at `solution`; None without a solution.
    bound
        No feasible value is below it; None where none is known.
    solution
        As the formulation reads it; None without one.
    seconds
        Wall time.
    stopped_by
        Why the solver ended.
    solver
        Name and version.
    seed
        That the solver was given.
    message
        What the solver said, or what went wrong and what to do.

    Raises
    ------
    ValueError
        If the parts contradict each other: `optimal` without equal value and bound, a status that has a solution
        without one, a number that is not finite, a bound above the value.

    Examples
    --------
    >>> done = Solved(Status.FEASIBLE, 10.0, 9.0, "plan", 1.5, "time", "HiGHS 1.12.0", 0)
    >>> done.gap
    0.1
    >>> Solved(Status.OPTIMAL, 10.0, 9.0, "plan", 1.5, "proof", "HiGHS 1.12.0", 0)
    Traceback (most recent call last):
    ValueError: 'optimal' with value 10.0 and bound 9.0
    """

    status: Status
    value: float | None
    bound: float | None
    solution: T | None
    seconds: float
    stopped_by: StoppedBy
    solver: str
    seed: int | None
    message: str = ""

    def __post_init__(self) -> None:
        for name, number in (("value", self.value), ("bound", self.bound)):
            if number is not None and not math.isfinite(number):
                raise ValueError(f"the {name} is {number}; unknown is None")
        if (self.value is None) != (self.solution is None):
            raise ValueError("a solution has a value, and a value belongs to a solution")
        found = self.solution is not None
        if found is (self.status in (Status.INFEASIBLE, Status.UNKNOWN)) and self.status is not Status.FAILED:
            raise ValueError(f"{self.status.value!r} {'with' if found else 'without'} a solution")
        if self.status is Status.OPTIMAL and not meets(self.value, self.bound):
            raise ValueError(f"'optimal' with value {self.value} and bound {self.bound}")
        gap(self.value, self.bound)

    @property
    def gap(self) -> float | None:
        """(value - bound) / value; None where unknown."""
        return gap(self.value, self.bound)


def meets(value: float | None, bound: float | None) -> bool:
    """Say whether a value and a bound are equal, up to round-off.

    >>> meets(10.0, 10.0 - 1e-9), meets(10.0, 9.9), meets(10.0, None)
    (True, False, False)
    """
    if value is None or bound is None:
        return False
    return abs(value - bound) <= ROUND_OFF * max(1.0, abs(value))

"""A mathematical model and how to read its solutions: what every formulation builds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    import pulp
    from ortools.sat.python import cp_model

    from optimizer.solvers.cpsat import CpValues
    from optimizer.solvers.milp import MilpValues

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class MilpModel(Generic[T]):
    """For `solvers.milp.run`.

    Attributes
    ----------
    problem
        Minimises; initial values of its variables are the warm start.
    read
        Makes the solution of the variables' values.
    """

    problem: pulp.LpProblem
    read: Callable[[MilpValues], T]


@dataclass(frozen=True, slots=True)
class CpModel(Generic[T]):
    """For `solvers.cpsat.run`.

    Attributes
    ----------
    model
        Minimises; its hints are the warm start.
    read
        Makes the solution of the variables' values.
    """

    model: cp_model.CpModel
    read: Callable[[CpValues], T]

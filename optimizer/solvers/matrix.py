"""A mixed-integer linear program as plain arrays: what HiGHS and CBC are given, and what their answers are checked by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.problem.columns import Floats
from optimizer.problem.gap import ROUND_OFF
from optimizer.solvers.task import Nonsense

if TYPE_CHECKING:
    import pulp


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """min cost x + offset, row_low <= A x <= row_high, low <= x <= high, some x whole.

    Attributes
    ----------
    cost, low, high
        By variable; infinite where there is no limit.
    whole
        Which variables are integers.
    offset
        Constant of the objective.
    row_low, row_high
        By row.
    starts, columns, entries
        A, row after row: row r owns columns[starts[r]:starts[r + 1]] and the entries beside.

    Examples
    --------
    >>> toy = Matrix.of(cost=[1, 2], low=[0, 0], high=[9, 9], whole=[True, True], rows=[(3, [(0, 1), (1, 1)], 9)])
    >>> toy.value_of(np.array([3.0, 0.0]))
    3.0
    """

    cost: Floats
    low: Floats
    high: Floats
    whole: NDArray[np.bool_]
    offset: float
    row_low: Floats
    row_high: Floats
    starts: NDArray[np.int32]
    columns: NDArray[np.int32]
    entries: Floats

    @classmethod
    def of(
        cls,
        *,
        cost: Sequence[float],
        low: Sequence[float],
        high: Sequence[float],
        whole: Sequence[bool],
        rows: Sequence[tuple[float, Sequence[tuple[int, float]], float]],
        offset: float = 0.0,
    ) -> Self:
        """Build from lists; a row is (low, [(column, entry), ...], high)."""
        flat = [pair for _, terms, _ in rows for pair in terms]
        return cls(
            np.asarray(cost, np.float64),
            np.asarray(low, np.float64),
            np.asarray(high, np.float64),
            np.asarray(whole, np.bool_),
            offset,
            np.asarray([low for low, _, _ in rows], np.float64),
            np.asarray([high for _, _, high in rows], np.float64),
            np.cumsum([0, *(len(terms) for _, terms, _ in rows)], dtype=np.int32),
            np.asarray([column for column, _ in flat], np.int32),
            np.asarray([entry for _, entry in flat], np.float64),
        )

    @classmethod
    def from_pulp(cls, problem: pulp.LpProblem) -> Self:
        """Read a PuLP problem; column i is `problem.variables()[i]`.

        Raises
        ------
        InputError
            If it maximises, has special ordered sets, or two variables have one name: PuLP would mix them up.
        """
        if problem.sense != 1:
            raise InputError("the PuLP problem maximises; minimise the negative, or count what is missed")
        if problem.sos1 or problem.sos2:
            raise InputError("the PuLP problem has special ordered sets; write them as linear rows")
        variables = problem.variables()
        place = {variable.name: i for i, variable in enumerate(variables)}
        if len(place) < len(variables):
            raise InputError("two variables of the PuLP problem have the same name; name each its own")
        objective = {} if problem.objective is None else problem.objective
        cost = [0.0] * len(variables)
        for variable, coefficient in objective.items():
            cost[place[variable.name]] += coefficient
        return cls.of(
            cost=cost,
            low=[-np.inf if v.lowBound is None else v.lowBound for v in variables],
            high=[np.inf if v.upBound is None else v.upBound for v in variables],
            whole=[v.cat == "Integer" for v in variables],
            rows=[
                (
                    -np.inf if row.getLb() is None else row.getLb(),
                    [(place[v.name], entry) for v, entry in row.items() if entry],
                    np.inf if row.getUb() is None else row.getUb(),
                )
                for row in problem.constraints()
            ],
            offset=getattr(objective, "constant", 0.0) or 0.0,
        )

    def rounded(self, values: Floats) -> Floats:
        """Make integers of what a solver calls integers within its tolerance."""
        return np.where(self.whole, np.round(values), values)

    def value_of(self, values: Floats) -> float:
        """Give the objective at a solution, and check that it is one.

        Raises
        ------
        Nonsense
            If an integer is none, or a limit of a variable or a row is crossed by more than 1e-6 (relative to the
            sum of the row's terms): names the first.
        """
        values = np.asarray(values, np.float64)
        if values.shape != self.cost.shape or not np.isfinite(values).all():
            raise Nonsense(f"not {len(self.cost)} finite numbers for {len(self.cost)} variables")
        off = np.abs(values - self.rounded(values)) > ROUND_OFF
        if off.any():
            raise Nonsense(f"integer variable {int(off.argmax())} has value {values[off.argmax()]}")
        values = self.rounded(values)
        self._check("variable", values, np.abs(values), self.low, self.high)
        terms = self.entries * values[self.columns]
        rows = np.repeat(np.arange(len(self.row_low)), np.diff(self.starts))
        size = len(self.row_low)
        self._check(
            "row",
            np.bincount(rows, terms, size).astype(np.float64),
            np.bincount(rows, np.abs(terms), size).astype(np.float64),
            self.row_low,
            self.row_high,
        )
        return float(self.cost @ values) + self.offset

    @staticmethod
    def _check(what: str, sums: Floats, scale: Floats, low: Floats, high: Floats) -> None:
        slack = ROUND_OFF * np.maximum(1.0, scale)
        wrong = (sums < low - slack) | (sums > high + slack)
        if wrong.any():
            i = int(wrong.argmax())
            raise Nonsense(
                f"a claimed solution violates {what} {i}: {sums[i]} is not within [{low[i]}, {high[i]}]"
            )

"""The linear program over columns that proposes prices, and the knots between which prices are linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from optimizer.problem.columns import Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class Knots:
    """Rounds between which prices are linear; the last is the horizon, where the price is 0.

    Attributes
    ----------
    rounds
        Ascending, from 0 to the horizon.

    Examples
    --------
    >>> knots = Knots(np.array([0, 2, 4]))
    >>> knots.spread(np.array([[4.0, 1.0]])).tolist()
    [[4.0, 2.5, 1.0, 0.5]]
    >>> knots.gather(np.ones((1, 4))).tolist()
    [[1.5, 2.0]]
    """

    rounds: Ints

    @classmethod
    def of(cls, number: int, prices: Floats) -> Self:
        """Place knots by a guess of prices by round: the denser the higher, but nowhere much thinner than evenly."""
        most = prices.max(initial=0.0) or 1.0
        passed = np.concatenate([[0.0], np.cumsum(prices / most + 0.1)])
        at = np.interp(np.linspace(0, passed[-1], number), passed, np.arange(len(passed)))
        return cls(np.unique(np.rint(at)).astype(np.int64))

    def at(self, prices: Floats) -> Floats:
        """Read prices by round at the knots but the last."""
        return prices[..., self.rounds[:-1]]

    def spread(self, values: Floats) -> Floats:
        """Give prices by round for values at the knots but the last, row by row."""
        every = np.arange(self.rounds[-1])
        return np.stack([np.interp(every, self.rounds, np.append(row, 0.0)) for row in values])

    def gather(self, by_round: Floats) -> Floats:
        """Give the transpose of `spread`: amounts by round, weighed by how much each knot's value counts there."""
        left = self.rounds[:-1]
        gaps = np.diff(self.rounds)
        share = (np.arange(self.rounds[-1]) - np.repeat(left, gaps)) / np.repeat(gaps, gaps)
        right = np.add.reduceat(by_round * share, left, axis=1)
        amounts = np.add.reduceat(by_round, left, axis=1) - right
        amounts[:, 1:] += right[:, :-1]
        return np.asarray(amounts, np.float64)


class Answer(NamedTuple):
    """Value of the program, and its prices at the knots: a row per resource."""

    value: float
    prices: Floats


class Master:
    """Chooses among columns, for each group a share of each, within the limits at all knots.

    Parameters
    ----------
    groups
        How many groups of requests there are.
    knots
        Of the prices.
    limits
        Of each resource, per round.
    """

    def __init__(self, groups: int, knots: Knots, limits: Floats) -> None:
        import highspy

        self._groups, self._limits = groups, limits
        self._shares = np.zeros((0, groups))
        self._columns = 0
        self._shape = (len(limits), len(knots.rounds) - 1)
        room = knots.gather(np.ones((1, int(knots.rounds[-1]))))[0]
        self._highs = highspy.Highs()
        # Prices from the middle of the best ones, as an interior point gives them, make better columns than corners.
        for option, value in (("output_flag", False), ("solver", "ipm"), ("run_crossover", "off")):
            self._highs.setOptionValue(option, value)
        rows = groups + self._shape[0] * self._shape[1]
        program = highspy.HighsLp()
        program.num_row_ = rows
        program.row_lower_ = np.concatenate([np.ones(groups), np.full(rows - groups, -np.inf)])
        # A resource is counted in units of its limit, so that all rows have about the same size.
        program.row_upper_ = np.concatenate([np.ones(groups), np.tile(room, len(limits))])
        program.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        program.a_matrix_.num_row_ = rows
        self._highs.passModel(program)

    def add(self, cost: Floats, used: Floats) -> None:
        """Add a column of each group: cost, and use by resource and knot, of shape (groups, resources, knots)."""
        part = (used / self._limits[:, None]).reshape(self._groups, -1)
        group, place = np.nonzero(part)
        sizes = np.bincount(group, minlength=self._groups) + 1
        begins = np.cumsum(sizes) - sizes
        index = np.insert(self._groups + place, begins - np.arange(self._groups), np.arange(self._groups))
        value = np.insert(part[group, place], begins - np.arange(self._groups), 1.0)
        zero, infinite = np.zeros(self._groups), np.full(self._groups, np.inf)
        starts, index = begins.astype(np.int32), index.astype(np.int32)
        self._highs.addCols(self._groups, cost, zero, infinite, len(index), starts, index, value)
        self._columns += 1

    def solve(self, time_limit_s: float) -> Answer | None:
        """Solve; None where HiGHS does not come to an optimum."""
        import highspy

        self._highs.setOptionValue("time_limit", self._highs.getRunTime() + time_limit_s)
        self._highs.run()
        if self._highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        solution = self._highs.getSolution()
        shares = np.maximum(np.array(solution.col_value), 0.0).reshape(-1, self._groups)
        self._shares = shares / shares.sum(axis=0)
        prices = np.maximum(-np.array(solution.row_dual)[self._groups :], 0.0).reshape(self._shape)
        return Answer(float(self._highs.getObjectiveValue()), prices / self._limits[:, None])

    def shares(self) -> Floats:
        """Give the share of each column in each group, of shape (columns, groups), as last solved for.

        Before that, the first column has it all.
        """
        shares = np.zeros((self._columns, self._groups))
        shares[: len(self._shares)] = self._shares
        if not len(self._shares):
            shares[0] = 1.0
        return shares

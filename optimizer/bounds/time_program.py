"""The time-indexed linear program of KV ramps, row by row, in HiGHS."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.bounds.cliques import Grown
from optimizer.problem.columns import Floats, Ints
from optimizer.problem.ramps import Ramps


@dataclass(frozen=True, slots=True, eq=False)
class Duals:
    """Prices of the rows, >= 0, in the order in which the rows were added."""

    memory: Floats
    seats: Floats
    cliques: Floats


class TimeProgram:
    """Which part of each request starts when, at least cost; rows are added as they are needed.

    Parameters
    ----------
    ramps
        The problem.
    horizon
        The program knows the starts of requests that end by this round,
    stride
        and of those only every so many.

    Attributes
    ----------
    request, start
        Of each column.
    part
        The solution: the part of the request that starts then.
    value
        Of the solution.
    rounds_of_memory, rounds_of_seats, cliques
        The rows there are.
    """

    def __init__(self, ramps: Ramps, horizon: int, stride: int = 1) -> None:
        import highspy

        self._ramps, self._stride = ramps, stride
        latest = np.maximum(horizon - ramps.rounds, ramps.arrival)
        count = (latest - ramps.arrival) // stride + 1
        self._begin = np.concatenate([[0], np.cumsum(count)])
        self.request = np.repeat(np.arange(len(ramps)), count)
        place = np.arange(len(self.request)) - self._begin[self.request]
        self.start = ramps.arrival[self.request] + place * stride
        self.part = np.zeros(len(self.request))
        self.value = 0.0
        self.rounds_of_memory: list[int] = []
        self.rounds_of_seats: list[int] = []
        self.cliques: list[Grown] = []
        self._kinds: list[int] = []
        self._infinite = highspy.kHighsInf
        self._highs = highspy.Highs()
        for option, value in (("output_flag", False), ("threads", 1), ("solver", "simplex")):
            self._highs.setOptionValue(option, value)
        n = len(self.request)
        self._highs.addVars(n, np.zeros(n), np.full(n, self._infinite))
        cost = ramps.weight[self.request] * (self.start + ramps.rounds[self.request])
        self._highs.changeColsCost(n, np.arange(n, dtype=np.int32), cost)
        for i in range(len(ramps)):
            self._add(np.arange(self._begin[i], self._begin[i + 1]), np.ones(count[i]), 1.0, low=1.0)

    def _add(self, columns: Ints, entries: Floats, high: float, low: float | None = None) -> None:
        low = -self._infinite if low is None else low
        self._highs.addRow(low, high, len(columns), columns.astype(np.int32), entries)

    def add_memory(self, in_round: int) -> None:
        """Limit what is held in a round."""
        columns = self._there(in_round)
        age = in_round - self.start[columns]
        held = -(-(self._ramps.prompt[self.request[columns]] + age) // self._ramps.block_tokens)
        self._add(columns, held.astype(np.float64), self._ramps.capacity)
        self.rounds_of_memory.append(in_round)
        self._kinds.append(0)

    def add_seats(self, in_round: int) -> None:
        """Limit how many are there in a round."""
        columns = self._there(in_round)
        self._add(columns, np.ones(len(columns)), self._ramps.seats)
        self.rounds_of_seats.append(in_round)
        self._kinds.append(1)

    def _there(self, in_round: int) -> Ints:
        age = in_round - self.start
        return np.flatnonzero((age >= 0) & (age < self._ramps.rounds[self.request]))

    def add_clique(self, clique: Grown) -> None:
        """Limit the starts in a clique to one."""
        inside = (self.start >= clique.first[self.request]) & (self.start <= clique.last[self.request])
        columns = np.flatnonzero(inside)
        self._add(columns, np.ones(len(columns)), 1.0)
        self.cliques.append(clique)
        self._kinds.append(2)

    def solve(self, time_limit_s: float) -> Duals | None:
        """Solve again; None where HiGHS does not come to an optimum in time."""
        import highspy

        self._highs.setOptionValue("time_limit", self._highs.getRunTime() + max(time_limit_s, 0.01))
        self._highs.run()
        if self._highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        self.value = float(self._highs.getObjectiveValue())
        solution = self._highs.getSolution()
        self.part = np.maximum(np.array(solution.col_value), 0.0)
        price = np.maximum(-np.array(solution.row_dual)[len(self._ramps) :], 0.0)
        kind = np.array(self._kinds, np.int64)
        return Duals(price[kind == 0], price[kind == 1], price[kind == 2])

    def use(self) -> tuple[Floats, Floats]:
        """Give the blocks and the seats that the solution uses, by round."""
        ramps = self._ramps
        end = int(self.start.max() + ramps.rounds.max())
        blocks, seats = np.zeros(end), np.zeros(end)
        for column in np.flatnonzero(self.part > 0).tolist():
            i, begin, part = int(self.request[column]), int(self.start[column]), self.part[column]
            until = begin + int(ramps.rounds[i])
            held = -(-(ramps.prompt[i] + np.arange(until - begin)) // ramps.block_tokens)
            blocks[begin:until] += part * held
            seats[begin:until] += part
        return blocks, seats

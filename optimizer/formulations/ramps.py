"""`ramps`: when to start each KV ramp, for CP-SAT (mathematics: models/formulations/ramps.md).

In whole rounds, without preemption, as `optimizer.problem.ramps` says: a request that has started runs to its end and
holds more KV in each round.

Sets        i in I requests
Data        o_i rounds, a_i arrival, w_i weight, d_i deadline, h_i(j) blocks held in the j-th round (from 0), M blocks, B seats
Variables   s_i in a_i..T_i whole: starting round
Objective   min sum_i w_i (s_i + o_i - a_i), or max_i s_i + o_i, or the number of i with s_i + o_i > d_i
Constraints (1) cumulative: h_i(0) blocks in s_i .. s_i + o_i - 1, and a block more from s_i + j to the same end
                for every j at which h_i grows; at most M
            (2) cumulative: one seat in s_i .. s_i + o_i - 1; at most B
            (3) sum_S v_i s_i >= phi(S) - sum_S m_i for some S: what is held in all rounds cannot lie earlier than packed
                without gaps (v_i: what i holds in all its rounds; m_i: that weighted by j; phi: packed; redundant)
            (4) s_i <= s_j for equal requests i < j
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any, Literal

import numpy as np
from ortools.sat.python import cp_model

from optimizer.errors import InputError
from optimizer.formulations.weights import whole_weights
from optimizer.problem.columns import Ints
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_greedy import ORDERS, check_startable, greedy

RampsObjective = Literal["latency", "makespan", "missed"]
Values = Callable[[cp_model.LinearExprT], int]

_MOST_ROWS = 40
"""Redundant rows of each kind; more slow the search down more than they help."""


@dataclass(frozen=True, slots=True)
class RampsModel:
    """The model, and how to read it.

    Attributes
    ----------
    model
        Minimises whole units; its hints are the warm start.
    read
        Makes starting rounds of the values of a solution.
    per_unit
        The objective's value per unit.
    is_relaxed
        Whether weights were rounded down: the optimum is then a bound, and starts may be better than it says.
    is_exact
        Whether nothing that is feasible is left out (`grain` = 1): otherwise the optimum is no bound.
    """

    model: cp_model.CpModel
    read: Callable[[Values], Ints]
    per_unit: float
    is_relaxed: bool
    is_exact: bool


def value_of(
    ramps: Ramps, start: Ints, objective: RampsObjective = "latency", deadline: Sequence[int] | None = None
) -> float:
    """Give the value of starting rounds.

    >>> value_of(Ramps.of([2, 2], [3, 1], capacity=5), np.array([0, 3]), "missed", deadline=[3, 3])
    1.0
    """
    end = np.asarray(start) + ramps.rounds
    if objective == "makespan":
        return float(end.max())
    if objective == "missed":
        return float((end > np.asarray(deadline)).sum())
    return float((ramps.weight * (end - ramps.arrival)).sum())


def build(
    ramps: Ramps,
    *,
    objective: RampsObjective = "latency",
    known: Ints | None = None,
    deadline: Sequence[int] | None = None,
    fixed: Mapping[int, int] | None = None,
    window: Mapping[int, tuple[int, int]] | None = None,
    least: float = 0.0,
    grain: int = 1,
) -> RampsModel:
    """Build the model.

    Parameters
    ----------
    ramps
        The problem.
    objective
        `latency`: weighted sum of completion less arrival. `makespan`: the last completion. `missed`: requests
        that complete after their deadline.
    known
        A feasible schedule (starting rounds): the warm start, and no answer is worse. None: the best of the greedy
        orders, where nothing is fixed.
    deadline
        By request, the round by which it should be complete; for `missed`.
    fixed
        Requests that start in given rounds, for a search that repairs a part of a schedule.
    window
        First and last round in which a request may start, where that is restricted.
    least
        A lower bound on the objective that is known from elsewhere.
    grain
        Blocks by which a ramp grows at once. More than 1 makes the model smaller and holds more than is needed:
        every answer is feasible, the best may be lost.

    Raises
    ------
    InputError
        If a request does not fit alone, `known` is not feasible or not as `fixed` and `window` want it, or a
        request that is fixed is not there.

    Examples
    --------
    >>> from optimizer.solvers.cpsat import run
    >>> built = build(Ramps.of([2, 2, 2], [3, 1, 2], capacity=5))
    >>> done = run(built.model, built.read)
    >>> done.value, done.solution.tolist()
    (7.0, [1, 0, 0])
    """
    check_startable(ramps)
    if objective == "missed" and (deadline is None or len(deadline) != len(ramps)):
        raise InputError("missed deadlines are counted against a deadline for each request; give them")
    if grain < 1:
        raise InputError(f"grain is {grain}; expected a whole number of blocks >= 1")
    fixed, window = dict(fixed or {}), dict(window or {})
    if known is None and not fixed and not window:
        starts = [greedy(ramps, order(ramps)) for order in ORDERS.values()]
        known = min(starts, key=lambda start: value_of(ramps, start, objective, deadline))
    if known is not None:
        _check_known(ramps, known, fixed, window)
    return _Writer(ramps, objective, known, deadline, fixed, window, least, grain).write()


def _check_known(
    ramps: Ramps, known: Ints, fixed: dict[int, int], window: dict[int, tuple[int, int]]
) -> None:
    if not ramps.feasible(known):
        raise InputError("the known schedule is not feasible; leave it out, or give one that is")
    for i, start in enumerate(known.tolist()):
        low, high = (fixed[i], fixed[i]) if i in fixed else window.get(i, (0, start))
        if not low <= start <= high:
            raise InputError(
                f"the known schedule starts request {i} in round {start}; it is to start from {low} to {high}"
            )


class _Writer:
    """Writes one model."""

    def __init__(
        self,
        ramps: Ramps,
        objective: RampsObjective,
        known: Ints | None,
        deadline: Sequence[int] | None,
        fixed: dict[int, int],
        window: dict[int, tuple[int, int]],
        least: float,
        grain: int,
    ) -> None:
        self.model = cp_model.CpModel()
        self.ramps, self.objective, self.known, self.deadline = ramps, objective, known, deadline
        self.fixed, self.window, self.least, self.grain = fixed, window, least, grain
        self.rounds, self.arrival = ramps.rounds.tolist(), ramps.arrival.tolist()
        self.held = [
            (-(-(prompt + np.arange(rounds)) // ramps.block_tokens)).tolist()
            for prompt, rounds in zip(ramps.prompt.tolist(), self.rounds, strict=True)
        ]
        self.weights, self.divisor, self.relaxed = whole_weights(ramps.weight.tolist())
        self.free = [i for i in range(len(ramps)) if i not in fixed]

    def write(self) -> RampsModel:
        m = self.model
        self.last = last = self._last_starts()
        self.start: list[Any] = list(self.arrival)
        for i, round_ in self.fixed.items():
            self.start[i] = round_
        for i in self.free:
            low, high = self.window.get(i, (0, last[i]))
            if high < max(low, self.arrival[i]):
                raise InputError(
                    f"request {i} arrives in round {self.arrival[i]} and is to start from {low} to {high}; move the window"
                )
            self.start[i] = m.new_int_var(max(low, self.arrival[i]), min(high, last[i]), f"s[{i}]")
        self._add_memory()
        self._add_seats()
        if not self.fixed:
            self._add_moments()
        self._add_order_of_equals()
        per_unit = self._add_objective()
        if self.known is not None:
            for i in self.free:
                m.add_hint(self.start[i], int(self.known[i]))
        start, free, fixed = self.start, self.free, self.fixed

        def read(value: Values) -> Ints:
            found = np.zeros(len(start), np.int64)
            for i, round_ in fixed.items():
                found[i] = round_
            for i in free:
                found[i] = value(start[i])
            return found

        return RampsModel(m, read, per_unit, self.relaxed and self.objective == "latency", self.grain == 1)

    def _last_starts(self) -> list[int]:
        """Give the last round in which it can be of use to start each request."""
        ramps, rounds = self.ramps, self.rounds
        # Shifted to the left where it can be, a schedule leaves no round empty that comes after the arrivals and
        # after all that is fixed or has to wait for its window.
        begin = max([*self.arrival, *(self.fixed[i] + rounds[i] for i in self.fixed)])
        begin = max([begin, *(low for low, _ in self.window.values())])
        busy = begin + sum(rounds[i] for i in self.free)
        last = [busy - o for o in rounds]
        if self.known is None:
            return last
        value = value_of(ramps, self.known, self.objective, self.deadline)
        if self.objective == "makespan":
            last = [min(end, int(value) - o) for end, o in zip(last, rounds, strict=True)]
        if self.objective == "latency":
            least = [
                w * (o + (self.fixed[i] - a if i in self.fixed else 0))
                for i, (w, o, a) in enumerate(zip(ramps.weight.tolist(), rounds, self.arrival, strict=True))
            ]
            spare = value - sum(least)
            for i, weight in enumerate(ramps.weight.tolist()):
                if weight > 0:
                    last[i] = min(last[i], self.arrival[i] + int(spare / weight + 1e-6))
        return [max(end, start) for end, start in zip(last, self.known.tolist(), strict=True)]

    def _add_memory(self) -> None:
        intervals: list[Any] = []
        demands: list[int] = []
        for i in self.free:
            grown = self._coarse(self.held[i])
            for j, (before, now) in enumerate(zip([0, *grown], grown, strict=False)):
                if now > before:
                    size = self.rounds[i] - j
                    intervals.append(
                        self.model.new_fixed_size_interval_var(self.start[i] + j, size, f"kv[{i},{j}]")
                    )
                    demands.append(now - before)
        self._add_fixed([self.held[i] for i in self.fixed], intervals, demands)
        self.model.add_cumulative(intervals, demands, self.ramps.capacity)

    def _coarse(self, held: list[int]) -> list[int]:
        """Let a ramp grow by `grain` blocks at once, to no more than it reaches."""
        first, top = held[0], held[-1]
        return [min(top, first + -(-(x - first) // self.grain) * self.grain) for x in held]

    def _add_seats(self) -> None:
        if self.ramps.seats >= len(self.ramps):
            return
        intervals: list[Any] = [
            self.model.new_fixed_size_interval_var(self.start[i], self.rounds[i], f"seat[{i}]")
            for i in self.free
        ]
        demands = [1] * len(intervals)
        self._add_fixed([[1] * self.rounds[i] for i in self.fixed], intervals, demands)
        self.model.add_cumulative(intervals, demands, self.ramps.seats)

    def _add_fixed(self, held: list[list[int]], intervals: list[Any], demands: list[int]) -> None:
        """What fixed requests hold, together: a rectangle for every change, as far as free requests can reach."""
        if not held or not self.free:
            return
        horizon = max(self.last[i] + self.rounds[i] for i in self.free)
        begin = min(self.window.get(i, (0, 0))[0] for i in self.free)
        used = np.zeros(horizon, np.int64)
        for start, profile in zip(self.fixed.values(), held, strict=True):
            used[start : start + len(profile)] += profile[: max(0, horizon - start)]
        edges = [begin, *(np.flatnonzero(np.diff(used[begin:])) + begin + 1).tolist(), horizon]
        for low, high in pairwise(edges):
            if used[low]:
                intervals.append(self.model.new_fixed_size_interval_var(low, high - low, f"fixed[{low}]"))
                demands.append(int(used[low]))

    def _add_moments(self) -> None:
        """Add (3) for the requests that the objective wants first, and for all."""
        weight = [max(w, 1) if self.objective == "latency" else 1 for w in self.weights]
        kinds = [(self.ramps.capacity, self.held)]
        if self.ramps.seats < len(self.ramps):
            kinds.append((self.ramps.seats, [[1] * o for o in self.rounds]))
        n = len(self.rounds)
        for capacity, held in kinds:
            volume = [sum(row) for row in held]
            first = sorted(range(n), key=lambda i: (volume[i] / weight[i], i))
            for count in sorted({n * part // _MOST_ROWS for part in range(1, _MOST_ROWS + 1)} - {0}):
                some = first[:count]
                packed, _ = packed_moment([(self.arrival[i], volume[i]) for i in some], capacity)
                own = sum(j * x for i in some for j, x in enumerate(held[i]))
                self.model.add(sum(volume[i] * self.start[i] for i in some) >= packed - own)

    def _add_order_of_equals(self) -> None:
        kinds: dict[tuple[Any, ...], int] = {}
        for i in self.free:
            kind = (
                int(self.ramps.prompt[i]), self.rounds[i], self.arrival[i], float(self.ramps.weight[i]),
                self.window.get(i), None if self.deadline is None else self.deadline[i],
            )  # fmt: skip
            if kind in kinds and self._known_order(kinds[kind], i):
                self.model.add(self.start[kinds[kind]] <= self.start[i])
            kinds[kind] = i

    def _known_order(self, i: int, j: int) -> bool:
        # A known schedule that has two equal requests the other way round stays a hint.
        return self.known is None or bool(self.known[i] <= self.known[j])

    def _add_objective(self) -> float:
        """Write the objective; give its value per unit."""
        m, per_unit = self.model, 1.0
        ends = [start + o for start, o in zip(self.start, self.rounds, strict=True)]
        if self.objective == "makespan":
            value: Any = m.new_int_var(0, max(self.last) + max(self.rounds), "makespan")
            m.add_max_equality(value, ends)
            _, packed = packed_moment(
                [(a, sum(row)) for a, row in zip(self.arrival, self.held, strict=True)], self.ramps.capacity
            )
            m.add(value >= packed)
        elif self.objective == "missed":
            assert self.deadline is not None
            late: list[Any] = []
            for i, end in enumerate(ends):
                if i in self.fixed:
                    late.append(int(end > self.deadline[i]))
                    continue
                missed = m.new_bool_var(f"missed[{i}]")
                m.add(end <= int(self.deadline[i])).only_enforce_if(~missed)
                late.append(missed)
            value = sum(late)
        else:
            per_unit = 1 / self.divisor
            value = sum(w * (end - a) for w, end, a in zip(self.weights, ends, self.arrival, strict=True))
        if not self.relaxed or self.objective != "latency":
            if self.known is not None:
                known = value_of(self.ramps, self.known, self.objective, self.deadline)
                m.add(value <= round(known / per_unit))
            if self.least:
                m.add(value >= ceil(self.least / per_unit - 1e-6))
        m.minimize(value)
        return per_unit


def packed_moment(volumes: Sequence[tuple[int, int]], capacity: int) -> tuple[int, int]:
    """Pack volumes as early as their arrivals allow, of any shape, with at most `capacity` in a round.

    Parameters
    ----------
    volumes
        (arrival, volume).
    capacity
        Of a round, >= 1.

    Returns
    -------
    tuple of int
        Sum over rounds of round times what lies in it: no less in any other packing. And the first round in which
        nothing is left.

    Examples
    --------
    >>> packed_moment([(0, 5), (4, 1)], capacity=2)  # 2 + 2 + 1 in rounds 0, 1, 2, and 1 in round 4
    (8, 5)
    """
    moment = left = now = 0
    for arrival, volume in [*sorted(volumes), (None, 0)]:
        full = left // capacity if arrival is None else min(left // capacity, arrival - now)
        moment += capacity * (now * full + full * (full - 1) // 2)
        left -= capacity * full
        now += full
        if left and (arrival is None or now < arrival):
            moment += now * left
            left, now = 0, now + 1
        if arrival is not None:
            now = max(now, arrival) if not left else now
            left += volume
    return moment, now

"""Which unfinished schedules cannot end better than another one that is kept.

One stands for another where whatever ends the other well ends it no worse:

- the same have started, it has cost no more, and in each round in which anyone could still run it holds no more;
- it has started one request more, and has cost no more than the other will have with that one started now.

Of two that stand for each other the first is kept. The second rule only ever drops one in which less has been started, so
none is dropped for the sake of one that is dropped for its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from optimizer.problem.columns import Floats, Ints
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_states import Flags, Ring, States, Words

_MANY = 4096
"""Comparisons between two groups, from which on they are made in steps: most that fall fall early."""
_FIRST_STEP = 12
_AT_ONCE = 2**19
_MIX = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD))


@dataclass(slots=True)
class _Compared:
    """States to compare, sorted by who has started."""

    use: Words
    lifted: Words
    cost: Floats
    area: Ints
    lifted_area: Ints
    alive: Flags
    order: list[int]


@dataclass(frozen=True, slots=True)
class _Groups:
    """For each group of states in which the same have started: where it begins and ends, and its judges."""

    started: Words
    begin: Ints
    end: Ints
    judges: Ints
    judges_begin: Ints
    judges_end: Ints

    def find(self, started: Words) -> tuple[Ints, Flags]:
        """Give the groups of some sets, and whether there are such."""
        place = np.minimum(np.searchsorted(self.started, started), len(self.started) - 1)
        return place, self.started[place] == started


class Dominance:
    """Finds and drops them.

    Parameters
    ----------
    ramps
        At most 64 requests.
    ring
        Of these.
    """

    def __init__(self, ramps: Ramps, ring: Ring) -> None:
        self._ramps, self._ring = ramps, ring
        self._bit = np.array([1 << i for i in range(len(ramps))], np.uint64)
        self._first = -(-ramps.prompt // ramps.block_tokens)

    def drop(self, states: States, now: int, until: float) -> States:
        """Drop what another one stands for.

        Parameters
        ----------
        states
            At the beginning of round `now`.
        until
            Time of the monotonic clock after which no more is compared.
        """
        waiting = states.waiting
        smallest = np.where(waiting, self._first, self._ramps.capacity + 1).min(axis=1)
        lifted = self._ring.lifted(states.use, smallest)
        order = _without_doubles(states, lifted)
        states, lifted = states.take(order), lifted[order]
        # Where nobody has just ended, the comparison was made a round ago.
        judges = np.flatnonzero((states.end == now).any(axis=1) | (now <= 1))
        if not len(judges):
            return states
        compared = _Compared(
            states.use, lifted, states.cost, self._ring.area(states.use), self._ring.area(lifted),
            np.ones(len(states), np.bool_), self._ring.order_from(now),
        )  # fmt: skip
        groups = _groups(states.started, judges)
        self._same(compared, groups, until)
        self._one_more(compared, groups, now, until)
        return states.take(compared.alive)

    def _same(self, compared: _Compared, groups: _Groups, until: float) -> None:
        k = np.flatnonzero((groups.judges_end > groups.judges_begin) & (groups.end - groups.begin > 1))
        self._judge(compared, groups, k, k, np.zeros(len(k)), until, same=True)

    def _one_more(self, compared: _Compared, groups: _Groups, now: int, until: float) -> None:
        judging = np.flatnonzero(groups.judges_end > groups.judges_begin)
        k, one = np.nonzero(groups.started[judging][:, None] & self._bit)
        other, there = groups.find(groups.started[judging[k]] ^ self._bit[one])
        k, one, other = judging[k[there]], one[there], other[there]
        start = np.maximum(now, self._ramps.arrival[one])
        more = self._ramps.weight[one] * (start + self._ramps.rounds[one])
        self._judge(compared, groups, k, other, more, until)

    def _judge(
        self, compared: _Compared, groups: _Groups, by: Ints, whom: Ints, more: Floats, until: float, *,
        same: bool = False,
    ) -> None:  # fmt: skip
        """Compare the judges of groups with the states of groups, which may cost so much more."""
        first, last = groups.judges_begin[by], groups.judges_end[by]
        low, high = groups.begin[whom], groups.end[whom]
        size = (last - first) * (high - low)
        for k in np.flatnonzero(size >= _MANY).tolist():
            if time.monotonic() > until:
                return
            judges = groups.judges[first[k] : last[k]]
            self._in_steps(compared, judges, np.arange(low[k], high[k]), float(more[k]), same)
        few = np.flatnonzero((size > 0) & (size < _MANY))
        for part in np.array_split(few, 1 + int(size[few].sum()) // (2 * _AT_ONCE)):
            if time.monotonic() > until:
                return
            count = size[part]
            row = np.repeat(part, count)
            place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
            width = (high - low)[row]
            judge, judged = groups.judges[first[row] + place // width], low[row] + place % width
            self._compare(compared, judge, judged, more[row], same)

    def _in_steps(self, compared: _Compared, judges: Ints, judged: Ints, more: float, same: bool) -> None:
        alive, cost = compared.alive, compared.cost
        judges, judged = judges[alive[judges]], judged[alive[judged]]
        # Those that cost and hold little stand for most.
        rank = compared.area[judges] + 4.0 * self._ramps.capacity * cost[judges]
        judges = judges[np.argsort(rank, kind="stable")]
        done, step, top, word = 0, _FIRST_STEP, self._ring.top, compared.order[0]
        while done < len(judges) and len(judged):
            some = judges[done : done + step]
            done += step
            step = min(2 * step, max(_FIRST_STEP, _AT_ONCE // len(judged)))
            some = some[alive[some]]
            may = (cost[some][:, None] <= cost[judged] + more) & (
                compared.area[some][:, None] <= compared.lifted_area[judged]
            )
            less = (compared.lifted[judged, word] | top) - compared.use[some, word][:, None]
            may &= (less & top) == top
            a, b = np.nonzero(may)
            if len(a):
                self._compare(compared, some[a], judged[b], np.full(len(a), more), same)
                judged = judged[alive[judged]]

    def _compare(self, compared: _Compared, judge: Ints, judged: Ints, more: Floats, same: bool) -> None:
        alive, cost = compared.alive, compared.cost
        may = alive[judge] & alive[judged] & (cost[judge] <= cost[judged] + more)
        may &= compared.area[judge] <= compared.lifted_area[judged]
        if same:
            # Two may stand for each other: then the first for the second.
            ahead = (cost[judge] < cost[judged]) | (
                compared.lifted_area[judge] < compared.lifted_area[judged]
            )
            may &= ahead | (judge < judged)
        judge, judged = judge[may], judged[may]
        top = self._ring.top
        for word in compared.order:
            if not len(judge):
                return
            less = (compared.lifted[judged, word] | top) - compared.use[judge, word]
            fits = (less & top) == top
            judge, judged = judge[fits], judged[fits]
        alive[judged] = False


def _without_doubles(states: States, lifted: Words) -> Ints:
    """Give the rows by who has started, without those that equal a cheaper one."""
    mixed = states.started * _MIX[0]
    for word in lifted.T:
        mixed = (mixed ^ word) * _MIX[1]
        mixed ^= mixed >> np.uint64(29)
    order = np.lexsort((states.cost, mixed))
    double = np.zeros(len(order), np.bool_)
    before, after = order[:-1], order[1:]
    double[1:] = (mixed[before] == mixed[after]) & (states.started[before] == states.started[after])
    double[1:] &= (lifted[before] == lifted[after]).all(axis=1)
    order = order[~double]
    return np.asarray(order[np.argsort(states.started[order], kind="stable")])


def _groups(started: Words, judges: Ints) -> _Groups:
    each, begin = np.unique(started, return_index=True)
    of_judge = np.searchsorted(each, started[judges])
    number = np.arange(len(each))
    return _Groups(
        each, begin, np.append(begin[1:], len(started)), judges,
        np.searchsorted(of_judge, number), np.searchsorted(of_judge, number, side="right"),
    )  # fmt: skip

"""What a ramp costs under prices, in a few operations per start whatever its length.

A request of prompt p = aB + r + 1 that starts at t holds ceil((p + u - t) / B) = a + 1 + floor((u - t + r) / B) blocks
of B tokens in round u. With c = (r - t) mod B the floor is floor((r - t) / B) + floor((u + c) / B), so the ramp's
charge is a difference of prefix sums of y_u and of y_u floor((u + c) / B).
"""

from __future__ import annotations

import numpy as np

from optimizer.problem.columns import Floats, Ints
from optimizer.problem.ramps import Ramps


class Charges:
    """Evaluates prices on the rounds 0..horizon - 1 for all starts of all requests.

    Parameters
    ----------
    ramps
        The problem.
    horizon
        Prices are 0 from this round on, so nobody gains by a start after max(horizon, its arrival).
    stride
        Only starts at multiples of it are looked at: faster, but minima may be missed if it is not 1.

    Examples
    --------
    >>> ramps = Ramps.of([3, 3], [2, 2], capacity=5)
    >>> cost, start = Charges(ramps, horizon=3).least(np.array([0.5, 0.25, 0.0]))
    >>> cost.tolist(), start.tolist()
    ([3.75, 3.75], [1, 1])
    """

    def __init__(self, ramps: Ramps, horizon: int, stride: int = 1) -> None:
        self._ramps, self.horizon = ramps, horizon
        self._head, self._residue = np.divmod(ramps.prompt - 1, ramps.block_tokens)
        self._stride, self._starts = stride, np.arange(0, horizon + stride, stride)
        self._skip = -(-ramps.arrival // stride)
        # Requests that share what does not depend on the prompt stand together.
        self._order = np.lexsort((ramps.weight, self._residue, ramps.rounds)).tolist()
        self._longest = int(ramps.rounds.max(initial=0))

    def least(self, memory: Floats, seats: Floats | None = None) -> tuple[Floats, Ints]:
        """Give the least weighted completion plus charge of each request, and a start that has it.

        Parameters
        ----------
        memory, seats
            Prices of a block and of a seat, by round; `horizon` numbers each.
        """
        ramps, tokens = self._ramps, self._ramps.block_tokens
        until, ramp_until = self._sums(memory)
        seat_until = None if seats is None else self._prefix(seats)
        at, n, step = self._starts, len(ramps), self._stride
        past = int(at[-1]) + 1
        factor = 1 + (np.arange(tokens)[:, None] - at) // tokens
        cost, start = np.empty(n), np.empty(n, np.int64)
        total = np.empty(len(at))
        key = None
        for i in self._order:
            rounds, residue, weight = int(ramps.rounds[i]), int(self._residue[i]), float(ramps.weight[i])
            if key != (rounds, residue, weight):
                key = rounds, residue, weight
                begin, end = slice(0, past, step), slice(rounds, rounds + past, step)
                blocks = until[end] - until[begin]
                fixed = ramp_until[(residue + rounds) % tokens][end] - ramp_until[residue][begin]
                fixed += factor[residue] * blocks
                fixed += weight * (at + rounds)
                if seat_until is not None:
                    fixed += seat_until[end] - seat_until[begin]
            skip = int(self._skip[i])
            if skip >= len(at):
                start[i] = ramps.arrival[i]
                cost[i] = weight * (start[i] + rounds)
                continue
            np.multiply(blocks, float(self._head[i]), out=total)
            np.add(total, fixed, out=total)
            best = skip + int(total[skip:].argmin())
            cost[i], start[i] = total[best], at[best]
        return cost, start

    def _prefix(self, prices: Floats) -> Floats:
        sums = np.zeros(self.horizon + self._stride + self._longest)
        np.cumsum(prices, out=sums[1 : self.horizon + 1])
        sums[self.horizon + 1 :] = sums[self.horizon]
        return sums

    def _sums(self, prices: Floats) -> tuple[Floats, Floats]:
        """Prefix sums of the prices, and row m: at s that of y_u floor((u + (m - s) mod B) / B)."""
        tokens = self._ramps.block_tokens
        until, rounds = self._prefix(prices), np.arange(self.horizon)
        by_shift = np.stack([self._prefix(prices * ((rounds + c) // tokens)) for c in range(tokens)])
        s = np.arange(len(until))
        return until, np.stack([by_shift[(m - s) % tokens, s] for m in range(tokens)])

    def usage(self, chosen: Ints, start: Ints, count: Floats) -> tuple[Floats, Floats]:
        """Give the blocks and the seats that some requests use in rounds 0..horizon - 1.

        Parameters
        ----------
        chosen
            Which requests.
        start, count
            For all requests: starting rounds, and how many like it there are.
        """
        tokens, rounds = self._ramps.block_tokens, self._ramps.rounds[chosen]
        head, residue, begin, many = self._head[chosen], self._residue[chosen], start[chosen], count[chosen]
        end = begin + rounds
        width = -(-(int(end.max()) + tokens) // tokens) * tokens
        # A request takes another block whenever the last is full: every `tokens` rounds from its first such round on.
        grows = begin + tokens - residue
        growing = many * (grows < end)
        more = np.bincount(grows, growing, width) - np.bincount(end + (grows - end) % tokens, growing, width)
        more = np.cumsum(more.reshape(-1, tokens), axis=0).ravel()
        more += np.bincount(begin, many * (head + 1), width)
        more -= np.bincount(end, many * (head + 1 + (residue + rounds - 1) // tokens), width)
        seats = np.bincount(begin, many, width) - np.bincount(end, many, width)
        return self._cut(np.cumsum(more)), self._cut(np.cumsum(seats))

    def _cut(self, by_round: Floats) -> Floats:
        cut = np.zeros(self.horizon)
        cut[: len(by_round)] = by_round[: self.horizon]
        return cut

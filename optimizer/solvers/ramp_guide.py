"""What prices say of a schedule that is made round by round.

A certificate charges every start (its completion, the memory it holds at the price of each round, the cliques it is in)
and pays back all memory and all cliques once. Of a schedule that is known up to a round, this bounds the end: what the
starts were charged, and what was left unused of the rounds and cliques that are over, is certain; who has not started
pays at least the least charge from here on. For a complete schedule it is the weighted sum of completions itself.

All numbers are whole multiples of 1 / denominator and stay below 2^53, where sums of floating-point numbers are exact.
"""

from __future__ import annotations

import heapq

import numpy as np

from optimizer.certificates.prices import Prices
from optimizer.problem.columns import Floats
from optimizer.problem.ramps import Ramps

FORBIDDEN = 2.0**45
"""The charge of a start that is not allowed; 64 of them still add up exactly."""
_WORD = 64


class Guide:
    """Charges by request and starting round, and when memory and cliques are paid back.

    Parameters
    ----------
    ramps
        n requests with whole weights.
    prices
        A certificate for them, of memory and cliques; rows of other tables are left out, which only weakens it.
    horizon
        Starts are considered in rounds 0..horizon - 1; it must suffice for some best schedule.

    Attributes
    ----------
    unit
        Charges are in units of 1 / `unit`.
    base
        The bound before anything is charged.
    charge
        By request and round; `FORBIDDEN` before the arrival.
    least
        The least charge from each round 0..horizon on.
    memory
        Price of a block by round.
    marks
        By round, request and word: which cliques, as bits, a start is in. A bit serves several cliques in turn.
    over
        By round, the cliques whose last start it is: word, bit and price.

    Examples
    --------
    >>> from optimizer.bounds.clique_prices import clique_prices
    >>> ramps = Ramps.of([3, 3, 3], [2, 2, 2], capacity=5)
    >>> guide = Guide(ramps, clique_prices(ramps, np.array([0, 2, 4])).certificate, horizon=7)
    >>> float(guide.base + guide.least[:, 0].sum()) / guide.unit
    12.0
    """

    def __init__(self, ramps: Ramps, prices: Prices, horizon: int) -> None:
        self.unit = prices.denominator
        self.memory = np.zeros(horizon)
        for row in prices.rows:
            if row.table is None:
                priced = row.prices[:horizon]
                self.memory[: len(priced)] += priced
        self.base = -ramps.capacity * float(self.memory.sum()) - sum(c.price for c in prices.cliques)
        finish = np.arange(horizon) + ramps.rounds[:, None]
        self.charge: Floats = finish * (ramps.weight[:, None] * float(self.unit))
        later = np.concatenate([self.memory, np.zeros(int(ramps.rounds.max()))])
        for i, (prompt, rounds) in enumerate(zip(ramps.prompt.tolist(), ramps.rounds.tolist(), strict=True)):
            held = -(-(prompt + np.arange(rounds)) // ramps.block_tokens)
            self.charge[i] += np.correlate(later, held.astype(float), "valid")[:horizon]
        self._mark(ramps, prices, horizon)
        self.charge[np.arange(horizon) < ramps.arrival[:, None]] = FORBIDDEN
        least = np.full((len(ramps), horizon + 1), FORBIDDEN)
        least[:, :-1] = np.minimum.accumulate(self.charge[:, ::-1], axis=1)[:, ::-1]
        self.least = least

    def _mark(self, ramps: Ramps, prices: Prices, horizon: int) -> None:
        priced = [clique for clique in prices.cliques if clique.price and int(clique.first.min()) < horizon]
        # A clique of which no start is left is paid back at once.
        priced.sort(key=lambda clique: int(clique.first.min()))
        self.base += sum(c.price for c in prices.cliques) - sum(c.price for c in priced)
        free: list[int] = []
        busy: list[tuple[int, int]] = []
        slots: list[int] = []
        for clique in priced:
            while busy and busy[0][0] < int(clique.first.min()):
                free.append(heapq.heappop(busy)[1])
            slots.append(free.pop() if free else len(busy))
            heapq.heappush(busy, (min(int(clique.last.max()), horizon - 1), slots[-1]))
        self.words = max(1, -(-(1 + max(slots, default=0)) // _WORD))
        self.marks = np.zeros((horizon, len(ramps), self.words), np.uint64)
        self.over: list[list[tuple[int, np.uint64, float]]] = [[] for _ in range(horizon)]
        for clique, slot in zip(priced, slots, strict=True):
            word, bit = slot // _WORD, np.uint64(1 << (slot % _WORD))
            for i, first, last in zip(
                clique.requests.tolist(), clique.first.tolist(), clique.last.tolist(), strict=True
            ):
                self.charge[i, first : last + 1] += clique.price
                self.marks[first : last + 1, i, word] |= bit
            self.over[min(int(clique.last.max()), horizon - 1)].append((word, bit, float(clique.price)))

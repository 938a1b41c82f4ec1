"""Cliques of starts that a fractional schedule violates, grown from single starts and then made as large as they get."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.certificates.cliques import NEVER, reach
from optimizer.problem.columns import Floats, Ints
from optimizer.problem.ramps import Ramps

_STEP = 4
"""A clique takes in this part of what it still may, request by request in turn, so that none crowds out the others."""


@dataclass(frozen=True, slots=True)
class Grown:
    """A clique, and between which starts each request can still be added to it.

    Attributes
    ----------
    first, last
        Its interval by request; first > last where a request is not in it.
    lowest, highest
        Every start in between conflicts with every start of another request in the clique.
    """

    first: Ints
    last: Ints
    lowest: Ints
    highest: Ints


class Grower:
    """Finds cliques among the starts before a horizon.

    Parameters
    ----------
    ramps
        The problem.
    horizon
        All that is looked at ends by this round.

    Examples
    --------
    Three requests that never meet: they end at least two rounds apart.

    >>> grower = Grower(Ramps.of([3, 3, 3], [2, 2, 2], capacity=5), horizon=9)
    >>> clique = grower.complete(grower.seed(0, 3))
    >>> list(zip(clique.first.tolist(), clique.last.tolist()))
    [(2, 4), (3, 3), (3, 3)]
    """

    def __init__(self, ramps: Ramps, horizon: int) -> None:
        self._ramps, self._reach = ramps, reach(ramps)
        self._latest = horizon - ramps.rounds
        # Large requests conflict with most, so they choose first.
        self._order = np.argsort(-ramps.peak, kind="stable").tolist()
        self._far = 2 * horizon - NEVER

    def seed(self, request: int, start: int) -> Grown:
        """Give the clique of a single start."""
        n = len(self._ramps)
        grown = Grown(
            np.full(n, self._far), np.full(n, -self._far), self._ramps.arrival.copy(), self._latest.copy()
        )
        self._take(grown, request, start, start)
        return grown

    def _take(self, grown: Grown, request: int, first: int, last: int) -> None:
        first, last = min(first, int(grown.first[request])), max(last, int(grown.last[request]))
        grown.first[request], grown.last[request] = first, last
        own = int(grown.lowest[request]), int(grown.highest[request])
        np.minimum(grown.highest, first + self._reach[request], out=grown.highest)
        np.maximum(grown.lowest, last - self._reach[:, request], out=grown.lowest)
        # A request starts once: its own starts conflict whatever lies between them.
        grown.lowest[request], grown.highest[request] = own

    def violated(self, request: Ints, start: Ints, part: Floats, begin: int) -> tuple[float, Grown]:
        """Grow a clique from one start of a fractional schedule, always by the largest part that it still may take.

        Parameters
        ----------
        request, start, part
            The fractional schedule: which part of which request starts when.
        begin
            Row of the start to grow from.

        Returns
        -------
        float
            The sum of the parts that are in the clique; in a schedule it is at most 1.
        Grown
            The clique.
        """
        row = begin
        grown = self.seed(int(request[row]), int(start[row]))
        while True:
            inside = (start >= grown.first[request]) & (start <= grown.last[request])
            may = (start >= grown.lowest[request]) & (start <= grown.highest[request]) & ~inside
            gain = np.where(may, part, 0.0)
            row = int(gain.argmax())
            if gain[row] <= 0:
                return float(part[inside].sum()), grown
            self._take(grown, int(request[row]), int(start[row]), int(start[row]))

    def complete(self, grown: Grown) -> Grown:
        """Take in more starts until none is left that conflicts with all; completions near those in it first."""
        rounds, inside = self._ramps.rounds, grown.last >= grown.first
        middle = float(((grown.first + grown.last)[inside] / 2 + rounds[inside]).mean())
        changed = True
        while changed:
            changed = False
            for request in self._order:
                lowest, highest = int(grown.lowest[request]), int(grown.highest[request])
                if highest < lowest:
                    continue
                first, last = int(grown.first[request]), int(grown.last[request])
                if last < first:
                    first = last = min(max(round(middle - rounds[request]), lowest), highest)
                elif first <= lowest and last >= highest:
                    continue
                else:
                    first -= -(-max(first - lowest, 0) // _STEP)
                    last += -(-max(highest - last, 0) // _STEP)
                self._take(grown, request, first, last)
                changed = True
        return grown

"""Memory and seats by round, with ramps put in and taken out: what a search over starting rounds asks most often.

A ramp of prompt p that starts at t needs p + u - t tokens' room in round u. So it fits where the most of
u - (free tokens in u) over its rounds is at most t - p: one maximum over a slice, whatever the block size.
"""

from __future__ import annotations

import numpy as np

from optimizer.problem.columns import Ints
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_greedy import check_startable


class Timeline:
    """An empty schedule to begin with.

    Parameters
    ----------
    ramps
        The problem.
    start
        Starting rounds of a feasible schedule that is put in at once; None: nothing is.

    Raises
    ------
    InputError
        If some request does not fit even alone.

    Examples
    --------
    >>> timeline = Timeline(Ramps.of([2, 2], [3, 1], capacity=5))
    >>> timeline.put(0, 0)
    >>> timeline.earliest(1, 0), timeline.earliest(1, 2)
    (0, 3)
    """

    def __init__(self, ramps: Ramps, start: Ints | None = None) -> None:
        check_startable(ramps)
        self.prompt, self.rounds = ramps.prompt.tolist(), ramps.rounds.tolist()
        tokens = ramps.block_tokens
        most = int((ramps.prompt + ramps.rounds).max(initial=0))
        self._held = tokens * (-(-np.arange(most + 1) // tokens))
        self._room = tokens * ramps.capacity
        self._need = np.zeros(0, np.int64)
        self._crowd = np.zeros(0, np.int64)
        self._seats = ramps.seats if ramps.seats < len(ramps) else None
        self._reach(1024)
        for i, t in enumerate([] if start is None else start.tolist()):
            self.put(i, t)

    def earliest(self, i: int, first: int) -> int:
        """Give the first round from `first` on at which request i fits beside what is in."""
        prompt, rounds, need = self.prompt[i], self.rounds[i], self._need
        t = first
        while True:
            window = need[t : t + rounds]
            if not len(window):
                return t
            u = int(window.argmax())
            least = int(window[u]) + prompt
            if least > t:
                # Where room is short the request must be younger, or not be there yet.
                t = min(t + u + 1, least)
            elif self._seats is None:
                return t
            else:
                full = np.flatnonzero(self._crowd[t : t + rounds] >= self._seats)
                if not len(full):
                    return t
                t += int(full[-1]) + 1

    def put(self, i: int, t: int) -> None:
        """Start request i at round t."""
        prompt, rounds = self.prompt[i], self.rounds[i]
        if t + rounds > len(self._need):
            self._reach(2 * (t + rounds))
        self._need[t : t + rounds] += self._held[prompt : prompt + rounds]
        if self._seats is not None:
            self._crowd[t : t + rounds] += 1

    def take(self, i: int, t: int) -> None:
        """Take out request i, which starts at round t."""
        prompt, rounds = self.prompt[i], self.rounds[i]
        self._need[t : t + rounds] -= self._held[prompt : prompt + rounds]
        if self._seats is not None:
            self._crowd[t : t + rounds] -= 1

    def _reach(self, end: int) -> None:
        more = np.arange(len(self._need), end)
        self._need = np.concatenate([self._need, more - self._room])
        self._crowd = np.concatenate([self._crowd, np.zeros(len(more), np.int64)])

"""Unfinished schedules, thousands at once: who has started, what is held from here on, and what it has cost.

Only what lies ahead matters to an unfinished schedule. The blocks that its running requests will hold stand in a ring
of lanes, several to a 64-bit word, one lane per round. A lane holds the use plus what lifts the capacity to just below
the lane's top bit: a word-wise addition tells by the top bits whether a ramp fits, and a subtraction compares profiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from optimizer.problem.columns import Floats, Ints
from optimizer.problem.ramps import Ramps

Words = npt.NDArray[np.uint64]
Flags = npt.NDArray[np.bool_]
NOT_STARTED = 2**16 - 1
"""The `end` of who has not started."""


@dataclass(slots=True)
class States:
    """Unfinished schedules of n requests, one per row.

    Attributes
    ----------
    started
        Requests, as bits.
    use
        The ring: what is held in the rounds from now on.
    cost
        Weighted completions of all that have started.
    value
        What is certain of the bound: without the charges of those that have not started.
    paid
        Cliques that were charged and are not over, as bits.
    before
        Blocks used in the round before.
    movable
        By request: whether it could still be moved a round earlier, by all that is known.
    end
        By request: the round at whose beginning it is complete.
    """

    started: Words
    use: Words
    cost: Floats
    value: Floats
    paid: Words
    before: Ints
    movable: Flags
    end: npt.NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.started)

    def take(self, rows: Any) -> States:
        """Give some of them."""
        return States(*(getattr(self, field.name)[rows] for field in fields(self)))

    @staticmethod
    def together(parts: Sequence[States]) -> States:
        """Give all of several."""
        names = [field.name for field in fields(States)]
        return States(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    @property
    def waiting(self) -> Flags:
        """By request: whether it has not started."""
        return np.asarray(self.end == NOT_STARTED)


class Ring:
    """How ramps and their use stand in words.

    Parameters
    ----------
    ramps
        With a capacity below 2^15 - 1.

    Attributes
    ----------
    words
        Words of a ring.
    lane
        Bits of a lane.
    ones, top
        A word with the lowest, and one with the highest bit of each lane.
    full
        What stands in a lane without a block left.
    empty
        A word of lanes in which nothing is held.
    ramp
        By starting round (modulo the lanes of the ring) and request: what to add.

    Examples
    --------
    >>> ring = Ring(Ramps.of([2, 2], [3, 2], capacity=5))
    >>> use = np.full((1, ring.words), ring.empty) + ring.ramp[0, 0]
    >>> ring.in_round(use, 2).tolist(), ring.fits(use + ring.ramp[0, 1]).tolist()
    ([4], [False])
    """

    def __init__(self, ramps: Ramps) -> None:
        self.lane = 8 if ramps.capacity < 2**7 - 1 else 16
        self.full = 2 ** (self.lane - 1) - 1
        self._per_word = 64 // self.lane
        self.words = -(-int(ramps.rounds.max()) // self._per_word)
        self._lanes = self.words * self._per_word
        self.ones = np.uint64(sum(1 << (self.lane * k) for k in range(self._per_word)))
        self.top = self.ones * np.uint64(self.full + 1)
        self._nothing = self.full - ramps.capacity
        self.empty = self.ones * np.uint64(self._nothing)
        self.ramp = np.zeros((self._lanes, len(ramps), self.words), np.uint64)
        for i, (prompt, rounds) in enumerate(zip(ramps.prompt.tolist(), ramps.rounds.tolist(), strict=True)):
            held = (-(-(prompt + np.arange(rounds)) // ramps.block_tokens)).tolist()
            for start in range(self._lanes):
                for age, blocks in enumerate(held):
                    word, shift = self._place(start + age)
                    self.ramp[start, i, word] += np.uint64(blocks << shift)

    def _place(self, in_round: int) -> tuple[int, int]:
        word, lane = divmod(in_round % self._lanes, self._per_word)
        return word, lane * self.lane

    def added(self, use: Words, request: Ints, start: int) -> Words:
        """Add a ramp to each row."""
        return np.asarray(use + self.ramp[start % self._lanes, request])

    def fits(self, use: Words) -> Flags:
        """Say which rows stay within the capacity."""
        return np.asarray(((use & self.top) == 0).all(axis=1))

    def in_round(self, use: Words, in_round: int) -> Ints:
        """Give the blocks used in a round."""
        word, shift = self._place(in_round)
        lane = (use[:, word] >> np.uint64(shift)) & np.uint64(2**self.lane - 1)
        return np.asarray(lane.astype(np.int64) - self._nothing)

    def leave(self, use: Words, in_round: int) -> None:
        """Empty the lane of a round that is over, for the round that follows the last one."""
        word, shift = self._place(in_round)
        use[:, word] &= ~np.uint64((2**self.lane - 1) << shift)
        use[:, word] |= np.uint64(self._nothing << shift)

    def order_from(self, in_round: int) -> list[int]:
        """Give the words, that of a round first."""
        first = self._place(in_round)[0]
        return [(first + k) % self.words for k in range(self.words)]

    def lifted(self, use: Words, least: Ints) -> Words:
        """Fill the rounds in which not even `least` blocks (by row) are left."""
        blocks = np.minimum(least, self.full).astype(np.uint64)[:, None]
        shut = (use + blocks * self.ones) & self.top
        return np.asarray(use | (shut - (shut >> np.uint64(self.lane - 1))))

    def area(self, use: Words) -> Ints:
        """Give the sum over all lanes."""
        pair, total = 2 * self.lane, np.zeros(len(use), np.uint64)
        low = np.uint64(sum((2**self.lane - 1) << (pair * k) for k in range(64 // pair)))
        for word in use.T:
            pairs = (word & low) + ((word >> np.uint64(self.lane)) & low)
            for k in range(64 // pair):
                total += (pairs >> np.uint64(pair * k)) & np.uint64(2**pair - 1)
        return total.astype(np.int64)

"""A schedule's use of memory and seats, one lane of a long integer per round, to find where a ramp fits in a few operations.

A lane has a bit more than the capacity needs. Its value is the use plus what lifts the capacity to just below that top
bit, so that adding a ramp to all its rounds at once sets top bits exactly where it does not fit. The seats stand in
lanes behind those of the memory, at the same distance in every ramp.
"""

from __future__ import annotations

from optimizer.problem.ramps import Ramps


class Lanes:
    """Ramps and rounds as long integers.

    Parameters
    ----------
    ramps
        The problem.
    horizon
        No request ends after this round.

    Attributes
    ----------
    empty
        An empty schedule.

    Examples
    --------
    >>> lanes = Lanes(Ramps.of([2, 2], [3, 1], capacity=5), horizon=9)
    >>> full = lanes.put(lanes.empty, 0, 0)
    >>> lanes.earliest(full, 1, 0), lanes.earliest(full, 0, 0), lanes.earliest(full, 1, 2)
    (0, 3, 3)
    """

    def __init__(self, ramps: Ramps, horizon: int) -> None:
        seated = ramps.seats < len(ramps)
        self._horizon = horizon
        self._width = width = max(ramps.capacity, ramps.seats if seated else 0).bit_length() + 2
        self._below = below = (1 << (width - 1)) - 1
        self._lane = (1 << width) - 1
        memory = sum(1 << (width * t) for t in range(horizon))
        seats = memory << (width * horizon) if seated else 0
        self._top = (memory | seats) << (width - 1)
        self._memory_top = memory << (width - 1)
        self.empty = memory * (below - ramps.capacity) + (seats * (below - ramps.seats) if seated else 0)
        self._rounds, self._tokens = ramps.rounds.tolist(), ramps.block_tokens
        self._held: list[list[int]] = []
        self._ramp: list[int] = []
        for prompt, rounds in zip(ramps.prompt.tolist(), self._rounds, strict=True):
            held = [-(-(prompt + age) // self._tokens) for age in range(rounds)]
            ramp = sum(blocks << (width * age) for age, blocks in enumerate(held))
            if seated:
                ramp += sum(1 << (width * (horizon + age)) for age in range(rounds))
            self._held.append(held)
            self._ramp.append(ramp)
        self._peaks = [memory * held[-1] for held in self._held]

    def put(self, used: int, request: int, start: int) -> int:
        """Add a request to a schedule."""
        return used + (self._ramp[request] << (self._width * start))

    def earliest(self, used: int, request: int, start: int) -> int | None:
        """Give the first round from `start` on in which a request fits; None if there is none before the horizon."""
        width, top, ramp, last = self._width, self._top, self._ramp[request], self._rounds[request] - 1
        # Rounds with room for its largest, in which alone it can end, are rare: go from one to the next.
        ends = ((used + self._peaks[request]) & self._memory_top) ^ self._memory_top
        while True:
            later = ends >> (width * (start + last))
            if not later:
                return None
            start += ((later & -later).bit_length() - 1) // width
            rest = used >> (width * start)
            over = (rest + ramp) & top
            if not over:
                return start
            place = (over.bit_length() - 1) // width
            start += self._delay(rest, request, place)

    def _delay(self, rest: int, request: int, place: int) -> int:
        """By how much it must at least start later because of the last lane in which it does not fit."""
        if place >= self._horizon:
            return place - self._horizon + 1
        excess = ((rest >> (self._width * place)) & self._lane) + self._held[request][place] - self._below
        return min((excess - 1) * self._tokens + 1, place + 1)

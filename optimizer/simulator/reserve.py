"""KV memory of engines that do not page: a request reserves all it may ever need, in one piece or not."""

from __future__ import annotations

from bisect import insort

from optimizer.simulator.state import EngineState


class Reservations:
    """Hands out KV for whole lives of requests, and writes down who holds what.

    Parameters
    ----------
    state
        Engine state; its KV cache is what is handed out.
    contiguous
        Whether a reservation must lie in one piece (first fit, holes merged when freed): such memory
        fragments.

    Examples
    --------
    See `optimizer/policies/orca.py`.
    """

    def __init__(self, state: EngineState, *, contiguous: bool) -> None:
        self._state = state
        self._contiguous = contiguous
        self.capacity = state.blocks * state.block_tokens
        self.free = self.capacity
        self._holes = [(0, self.capacity)]
        self.held: dict[int, tuple[int, int]] = {}

    def fits(self, tokens: int) -> bool:
        """Say whether that much can be reserved now."""
        if not self._contiguous:
            return tokens <= self.free
        return any(size >= tokens for _, size in self._holes)

    def take(self, request: int, tokens: int) -> None:
        """Reserve; the caller has asked `fits`."""
        offset = -1
        if self._contiguous:
            place = next(i for i, (_, size) in enumerate(self._holes) if size >= tokens)
            offset, size = self._holes.pop(place)
            if size > tokens:
                self._holes.insert(place, (offset + tokens, size - tokens))
        self.free -= tokens
        self.held[request] = (offset, tokens)
        self._state.recorder.reserved(request, offset, tokens)

    def start(self, request: int, tokens: int) -> bool:
        """Reserve for the request at the head of the queue and let its whole prompt run; False: it does not fit.

        Nobody gets more than all there is.
        """
        state = self._state
        tokens = min(tokens, self.capacity)
        if not self.fits(tokens):
            return False
        state.waiting.pop()
        self.take(request, tokens)
        state.admit(request)
        state.schedule(request, state.left[request])
        return True

    def give_back(self, request: int) -> None:
        """Free a reservation."""
        offset, tokens = self.held.pop(request)
        self.free += tokens
        self._state.recorder.released(request)
        if not self._contiguous:
            return
        insort(self._holes, (offset, tokens))
        merged: list[tuple[int, int]] = []
        for start, size in self._holes:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((start, size))
        self._holes = merged

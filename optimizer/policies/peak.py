"""How much KV a set of requests will need at most, if their remaining lengths are what one believes."""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil

from optimizer.simulator.state import EngineState


def future_peak(pairs: Iterable[tuple[float, float]]) -> float:
    """Give the largest sum of contexts that requests reach when they all decode on.

    Memory peaks just before one of them finishes: with the requests sorted by remaining tokens, the
    longest first, the peak is the largest of remaining_k * k + (tokens that the first k hold now).

    Parameters
    ----------
    pairs
        (tokens held now, tokens still to come) of each request.

    Notes
    -----
    Source: LightLLM's router, ModelTC/lightllm `req_queue`; the same test as MC-SF's, arXiv 2502.07115.

    Examples
    --------
    >>> future_peak([(10, 5), (20, 1), (5, 9)]), future_peak([(10, 5), (20, 1), (5, 9), (8, 8)])
    (38, 47)
    """
    peak = held = 0.0
    for count, (used, remaining) in enumerate(sorted(pairs, key=lambda pair: -pair[1]), start=1):
        held += used
        peak = max(peak, remaining * count + held)
    return int(peak) if peak == int(peak) else peak


class PeakGuard:
    """Admits a request only if the future peak, under the lengths that are known, stays within the KV cache.

    With exact lengths nothing is ever preempted. Blocks are rounded up: a request counts a block's tokens
    more than it holds.
    """

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._capacity = state.blocks * state.block_tokens
        self._lives: dict[int, float] = {}
        self._sum = 0.0

    def _life(self, request: int) -> float:
        s = self._state
        return (
            s.prompt_tokens[request] + max(s.length_guess(request), s.generated(request) + 1) + s.block_tokens
        )

    def refuses_for(self, request: int) -> int:
        """Say for how many decode steps the request is surely refused, if nothing else happens; 0: it is not.

        Each running request's end is a moment at which memory peaks. If the peak there is too high by e
        tokens, a start up to e - 1 steps later does not help: the newcomer would have that many fewer tokens
        then. If it is too high at the newcomer's own end, that end must move behind the next one's.
        """
        s = self._state
        if not s.running or self._all_ends_at_once_fit(request):
            return 0  # alone it may always run, whatever its length
        own, others = self._pair(request), [self._pair(r) for r in s.running]
        pairs = sorted([*others, own], key=lambda pair: -pair[1])
        place = pairs.index(own)
        held = refused = 0.0
        for count, (used, remaining) in enumerate(pairs, start=1):
            held += used
            excess = remaining * count + held - self._capacity
            if excess <= 0:
                continue
            if count - 1 == place:
                excess = pairs[place - 1][1] - remaining + 1 if place else 1
            elif count - 1 < place:
                excess = remaining  # too high even without the newcomer
            refused = max(refused, excess)
        # Once somebody outlives the guess, ends move: look again by then.
        soonest = min(remaining for _, remaining in others) - 1
        return max(1, ceil(min(refused, soonest))) if refused else 0

    def _all_ends_at_once_fit(self, request: int) -> bool:
        s = self._state
        for gone in self._lives.keys() - s.running.keys():
            self._sum -= self._lives.pop(gone)
        for new in s.running.keys() - self._lives.keys():
            self._lives[new] = self._life(new)
            self._sum += self._lives[new]
        return self._sum + self._life(request) <= self._capacity

    def _pair(self, request: int) -> tuple[float, float]:
        s = self._state
        generated = s.generated(request)
        # The last token is sampled and never stored: when a request ends it holds one token fewer than it has.
        held = s.prompt_tokens[request] + generated - 1
        remaining = max(s.length_guess(request) - generated, 1.0)
        if not s.is_decoding(request):
            remaining += self._prompt_steps(request) - 1  # the last step of its prompt gives the first token
        return held + s.block_tokens - 1, remaining

    def _prompt_steps(self, request: int) -> int:
        """Give the steps that a prompt takes, behind the prompts begun before it and beside all who decode."""
        s = self._state
        tokens: int = s.left[request]
        for earlier in s.prefilling:
            if earlier == request:
                break
            tokens += s.left[earlier]
        return -(-tokens // max(1, s.token_budget - s.num_decoding))

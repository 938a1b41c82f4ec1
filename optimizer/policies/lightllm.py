"""LightLLM's token-level router, and its Past-Future scheduler: admit by the future peak of KV."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.policies.base import Policy, register
from optimizer.simulator.state import EngineState

Futures = NDArray[np.float64]
"""Guesses, shape (2, futures, requests): tokens held now, and tokens still to come."""


@register("lightllm")
@dataclass
class LightLLM(Policy):
    """LightLLM: KV by the token; admits in order of arrival while the predicted peak of KV stays in bounds.

    Every `max_wait_steps` decode steps, or when idle, it tries to start prompts (whole, in a step of their
    own, up to the token budget or one prompt); in between all decode. A request is believed to generate its
    cap if the cache is used to `router_token_ratio` or more, else max(1.1 x generated,
    `router_max_new_tokens`). Where KV runs out, the newest is paused: it goes back to the front.

    Source: ModelTC/lightllm, `server/router`; microsoft/vidur `lightllm_replica_scheduler.py`.
    """

    max_wait_steps: int = 10
    router_token_ratio: float = 0.0
    router_max_new_tokens: int = 1024

    block_tokens = 1
    has_budget = False

    def __post_init__(self) -> None:
        self.demand("max_wait_steps", self.max_wait_steps >= 1, "at least 1")
        self.demand("router_token_ratio", self.router_token_ratio >= 0, "a share of the cache, at least 0")
        self.demand("router_max_new_tokens", self.router_max_new_tokens >= 1, "at least 1")

    def start(self, state: EngineState) -> None:
        """Start counting steps."""
        self._last_try = 0
        self._longest_cap = max(state.cap)

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        s = state
        since = (s.clock - self._last_try) % self.max_wait_steps
        if s.waiting and (not s.running or (since == 0 and s.clock > self._last_try)):
            self._start_prompts(s)
        if s.chunks:
            s.stalled = True
            self._last_try = s.clock
            return
        if s.tight:
            while s.decode_need() > s.free_blocks():
                s.preempt(next(reversed(s.running)))
            s.take_decode_blocks()
        if s.running and s.waiting:  # whoever arrives before the next try waits for it
            s.deaf = True
            s.hold = self.max_wait_steps - since

    def _start_prompts(self, s: EngineState) -> None:
        tokens = 0
        futures = None
        while s.waiting and s.free_seats() > 0:
            request = s.waiting.head()
            cached = s.cached_tokens(request)
            whole = s.left[request] - cached
            if s.chunks and tokens + whole > s.token_budget:
                return
            if s.tight and s.admission_need(request, whole, cached) > s.free_blocks():
                return
            if futures is not None or not self._surely_in_bounds(s, request):
                if futures is None:
                    futures = self.futures(s, list(s.running))
                futures = np.concatenate((futures, self.futures(s, [request])), axis=2)
                if s.running and largest_peak(futures) >= self.bound(s):
                    return  # alone it may always run
            s.waiting.pop()
            s.admit(request, cached)
            s.schedule(request, whole)
            tokens += whole

    def bound(self, s: EngineState) -> float:
        """Give the tokens that the peak must stay below."""
        return s.blocks * s.block_tokens

    def _surely_in_bounds(self, s: EngineState, request: int) -> bool:
        """Say whether the peak would stay in bounds even if all that run were as long as can be."""
        with_it = len(s.running) + 1
        held = s.held_tokens() + s.left[request] + sum(s.left[r] for r in s.prefilling)
        return bool(held + with_it * (self.longest(s) + 2) < self.bound(s))

    def longest(self, s: EngineState) -> int:
        """Give the longest output that can be guessed."""
        return self._longest_cap

    def futures(self, s: EngineState, requests: list[int]) -> Futures:
        """Guess how much requests hold and how much is still to come: one future, believed to be true."""
        generated = [s.generated(request) for request in requests]
        length = [float(s.cap[request]) for request in requests]
        if s.held_tokens() < self.router_token_ratio * s.blocks * s.block_tokens:
            length = [
                min(cap, max(1.1 * out, self.router_max_new_tokens))
                for cap, out in zip(length, generated, strict=True)
            ]
        return _futures(s, requests, generated, np.array([length]))


def _futures(s: EngineState, requests: list[int], generated: list[int], lengths: Futures) -> Futures:
    held = np.array([s.prompt_tokens[r] + out + 1 for r, out in zip(requests, generated, strict=True)], float)
    to_come = np.maximum(lengths - np.array(generated, float) - 1, 0)
    return np.stack((np.broadcast_to(held, to_come.shape), to_come))


def largest_peak(futures: Futures) -> float:
    """Give the largest peak of several futures: `future_peak` for all of them at once.

    Parameters
    ----------
    futures
        Shape (2, futures, requests): tokens held now, and tokens still to come.

    Examples
    --------
    >>> float(largest_peak(np.array([[[10, 20, 5, 8]], [[5, 1, 9, 8]]], dtype=float)))
    47.0
    """
    order = np.argsort(-futures[1], axis=1, kind="stable")
    held, to_come = np.take_along_axis(futures, order[None], axis=2)
    return float((to_come * np.arange(1, to_come.shape[1] + 1) + held.cumsum(axis=1)).max())


@register("past-future")
@dataclass
class PastFuture(LightLLM):
    """LightLLM's Past-Future scheduler: final lengths drawn from the recent past, given what is generated.

    The lengths of the last `history` finished requests are the distribution (at first: half of them the
    cap); each running request's length is drawn from those above what it has generated; of `samples` draws
    the largest peak counts, and `reserve` of the cache stays free. Source: arXiv 2507.10150; ModelTC/lightllm
    branch `future_past_router`.
    """

    history: int = 200
    samples: int = 5
    reserve: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        self.demand("history", self.history >= 2, "at least 2")
        self.demand("samples", self.samples >= 1, "at least 1")
        self.demand("reserve", 0 <= self.reserve < 1, "a share from 0 to below 1")

    def start(self, state: EngineState) -> None:
        """Prime the history."""
        super().start(state)
        primed = [max(state.cap)] * (self.history // 2)
        self._recent = deque(primed)
        self._sorted = sorted(primed)
        self._rng = np.random.default_rng(self.seed)

    def finished(self, state: EngineState, request: int) -> None:
        """Remember how long it was."""
        if len(self._recent) == self.history:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
        length = state.generated(request)
        self._recent.append(length)
        insort(self._sorted, length)

    def longest(self, s: EngineState) -> int:
        """Give the longest output that can be drawn."""
        return max(self._longest_cap, self._sorted[-1])

    def bound(self, s: EngineState) -> float:
        """Give the tokens that the peak must stay below: the cache less its reserve."""
        return super().bound(s) * (1 - self.reserve)

    def futures(self, s: EngineState, requests: list[int]) -> Futures:
        """Draw several futures: each request as long as some recent one that was longer than it is now."""
        generated = [s.generated(request) for request in requests]
        recent, known = np.array(self._sorted), len(self._sorted)
        longer = np.searchsorted(recent, generated, side="right")
        drawn = longer + (self._rng.random((self.samples, len(requests))) * (known - longer)).astype(np.int64)
        cap = np.array([s.cap[request] for request in requests])
        lengths = np.where(longer < known, recent[np.minimum(drawn, known - 1)], cap)
        return _futures(s, requests, generated, lengths.astype(float))

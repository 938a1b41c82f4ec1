"""LightLLM's token-level router, and its Past-Future scheduler: admit by the future peak of KV."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass

import numpy as np

from optimizer.policies.base import Policy, register
from optimizer.policies.peak import future_peak
from optimizer.simulator.state import EngineState


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
        pairs = None
        while s.waiting and len(s.running) < s.max_num_seqs:
            request = s.waiting.head()
            cached = s.cached_tokens(request)
            whole = s.left[request] - cached
            if s.chunks and tokens + whole > s.token_budget:
                return
            if s.tight and s.admission_need(request, whole, cached) > s.free_blocks():
                return
            if pairs is None:
                pairs = self.believed(s)
            if not self.peak_in_bounds(s, pairs, request) and s.running:
                return  # alone it may always run
            s.waiting.pop()
            s.admit(request, cached)
            s.schedule(request, whole)
            tokens += whole

    def believed(self, s: EngineState) -> list[list[tuple[float, float]]]:
        """Give one or more guesses of (tokens held, tokens still to come) of all that run."""
        return [[self._pair(s, request) for request in s.running]]

    def peak_in_bounds(self, s: EngineState, guesses: list[list[tuple[float, float]]], request: int) -> bool:
        """Count the request in, and say whether the peak stays in bounds."""
        guesses[0].append(self._pair(s, request))
        return future_peak(guesses[0]) < s.blocks

    def _pair(self, s: EngineState, request: int) -> tuple[float, float]:
        generated = s.generated(request)
        length: float = s.cap[request]
        if s.context_sum + s.idle_tokens < self.router_token_ratio * s.blocks:
            length = min(length, max(1.1 * generated, self.router_max_new_tokens))
        return s.prompt_tokens[request] + generated + 1, max(length - generated - 1, 0)


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
            del self._sorted[bisect_right(self._sorted, self._recent.popleft()) - 1]
        length = state.generated(request)
        self._recent.append(length)
        insort(self._sorted, length)

    def believed(self, s: EngineState) -> list[list[tuple[float, float]]]:
        """Draw several futures of all that run."""
        return [[self._drawn(s, request) for request in s.running] for _ in range(self.samples)]

    def peak_in_bounds(self, s: EngineState, guesses: list[list[tuple[float, float]]], request: int) -> bool:
        """Count the request in, and say whether every drawn future stays in bounds."""
        for guess in guesses:
            guess.append(self._drawn(s, request))
        bound = s.blocks * (1 - self.reserve)
        return all(future_peak(guess) < bound for guess in guesses)

    def _drawn(self, s: EngineState, request: int) -> tuple[float, float]:
        generated = s.generated(request)
        longer = bisect_right(self._sorted, generated)
        if longer == len(self._sorted):
            length = s.cap[request]
        else:
            length = self._sorted[longer + int(self._rng.random() * (len(self._sorted) - longer))]
        return s.prompt_tokens[request] + generated + 1, max(length - generated - 1, 0)

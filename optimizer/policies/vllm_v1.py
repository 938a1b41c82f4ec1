"""vLLM V1: one token budget for prompts and decodes alike, decodes first, recompute under KV pressure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optimizer.policies.base import Policy, register
from optimizer.simulator.state import EngineState


@register("vllm-v1")
@dataclass
class VllmV1(Policy):
    """vLLM V1: unified scheduler, chunked prefill, first come first served, preempts the last admitted.

    Every step: requests that run get their tokens in order of admission (a decode one, a prompt what is left
    of it and of the budget); where blocks run out the last admitted is thrown out and waits in front. Then,
    if nobody was thrown out, waiting requests are admitted while budget, seats and blocks last.

    `long_prefill_token_threshold` caps the tokens of a prompt per step (0: no cap).
    Source: vllm-project/vllm, vllm/v1/core/sched/scheduler.py.
    """

    long_prefill_token_threshold: int = 0

    arrivals_queue_behind: ClassVar[bool] = True

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        s = state
        if s.tight:
            budget = self._serve_running_tight(s)
        else:
            budget = s.token_budget - s.num_decoding
            for request in s.prefilling:
                if budget == 0:
                    break
                tokens = self._chunk(s, request, budget)
                s.chunks.append((request, tokens))
                budget -= tokens
        if budget >= 0:
            self._admit(s, budget)

    def _chunk(self, s: EngineState, request: int, budget: int) -> int:
        tokens = s.left[request]
        if 0 < self.long_prefill_token_threshold < tokens:
            tokens = self.long_prefill_token_threshold
        return tokens if tokens < budget else budget

    def _serve_running_tight(self, s: EngineState) -> int:
        """Give running requests their tokens where blocks may run out; -1 if somebody was thrown out."""
        before = s.preemptions
        while s.decode_need() > s.free_blocks():
            self.throw_out(s)
        s.take_decode_blocks()
        budget = s.token_budget - s.num_decoding
        for request in list(s.prefilling):
            if request not in s.running or budget == 0:
                continue
            tokens = self._chunk(s, request, budget)
            while request in s.running and s.chunk_need(request, tokens) > s.free_blocks():
                self.throw_out(s)
            if request in s.running:
                s.schedule(request, tokens)
                budget -= tokens
        return budget if s.preemptions == before else -1

    def throw_out(self, s: EngineState) -> None:
        """Preempt one running request: the last admitted."""
        s.preempt(next(reversed(s.running)))

    def may_admit(self, s: EngineState, request: int) -> bool:
        """Say whether a request that fits may be admitted now; heuristics that look ahead refuse here."""
        return True

    def fits(self, s: EngineState, request: int, cached: int) -> bool:
        """Say whether a waiting request has the blocks it needs: the whole prompt must fit, chunked or not."""
        return s.admission_need(request, s.left[request] - cached, cached) <= s.free_blocks()

    def _admit(self, s: EngineState, budget: int, most: int = 1 << 60) -> None:
        waiting = s.waiting
        seats = s.max_num_seqs - len(s.running)
        blocked = False
        while budget and seats > 0 and most and waiting:
            request = waiting.head()
            cached = s.cached_tokens(request) if s.cache is not None else 0
            if (s.tight and not self.fits(s, request, cached)) or not self.may_admit(s, request):
                blocked = True
                break
            waiting.pop()
            s.admit(request, cached)
            tokens = self._chunk(s, request, budget)
            s.schedule(request, tokens)
            budget -= tokens
            seats -= 1
            most -= 1
        # Nobody can be admitted before the run is over, so an arrival changes nothing. A blocked head of the
        # queue is final only if arrivals queue behind it.
        s.deaf = not budget or seats <= 0 or (blocked and self.arrivals_queue_behind)
        if s.chunks:
            request, tokens = s.chunks[0]
            s.hold = s.left[request] // tokens if len(s.chunks) == 1 and not budget else 1

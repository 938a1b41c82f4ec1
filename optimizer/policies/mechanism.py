"""The mechanism that most systems of today share: one token budget, decodes first, prompts in chunks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from optimizer.policies.base import Policy
from optimizer.simulator.decoding import UNLIMITED
from optimizer.simulator.state import EngineState


@dataclass
class ChunkedPrefill(Policy):
    """A step: every decode, then prompts that have begun, then new ones, up to the token budget.

    Where KV blocks run out, a running request is thrown out (`throw_out`: the last admitted) and waits again;
    in such a step nobody is admitted. A waiting request is admitted in the order of the queue if it `fits`
    and `may_admit` agrees; the first that is refused ends the scan.

    A subclass changes the order (`queue`), who may come in (`fits`, `may_admit`), who is thrown out, or how
    much of a prompt is computed at once (`most_of_a_prompt`).

    Class attributes
    ----------------
    most_of_a_prompt
        Tokens of one prompt that a step computes at most.
    arrivals_queue_behind
        Whether whoever arrives waits behind all others: then a refused head of the queue is final until
        something happens, and arrivals need not be looked at before.
    """

    arrivals_queue_behind: ClassVar[bool] = True
    most_of_a_prompt = UNLIMITED

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        s = state
        if self.most_of_a_prompt < s.token_budget:
            self.hold_back_beyond_budget(s)
        if s.tight:
            budget = self.serve_running_tight(s)
        else:
            budget = s.token_budget - s.num_decoding
            for request in s.prefilling:
                if not budget:
                    break
                tokens = s.left[request]
                if tokens > self.most_of_a_prompt:
                    tokens = self.most_of_a_prompt
                if tokens > budget:
                    tokens = budget
                s.chunks.append((request, tokens))
                budget -= tokens
        if budget >= 0:
            self.admit(s, budget)

    def serve_running_tight(self, s: EngineState) -> int:
        """Give running requests their tokens where blocks may run out.

        Returns the budget that is left, or -1 if somebody was thrown out.
        """
        before = s.preemptions
        while s.decode_need() > s.free_blocks():
            self.throw_out(s)
        s.take_decode_blocks()
        budget = s.token_budget - s.num_decoding
        for request in list(s.prefilling):
            if request not in s.running or not budget:
                continue
            tokens = min(s.left[request], self.most_of_a_prompt, budget)
            while request in s.running and s.chunk_need(request, tokens) > s.free_blocks():
                self.throw_out(s)
            if request in s.running:
                s.schedule(request, tokens)
                budget -= tokens
        return budget if s.preemptions == before else -1

    def hold_back_beyond_budget(self, s: EngineState) -> None:
        """Several prompts in progress may use up the budget before later decodes get their token."""
        for request in list(s.held):
            s.resume(request)
        budget = s.token_budget
        if (
            s.num_decoding
            + sum(min(s.left[request], self.most_of_a_prompt, budget) for request in s.prefilling)
            <= budget
        ):
            return
        for request in list(s.running):
            if not s.is_decoding(request):
                budget -= min(s.left[request], self.most_of_a_prompt, budget)
            elif budget:
                budget -= 1
            else:
                s.hold_back(request)

    def throw_out(self, s: EngineState) -> None:
        """Preempt one running request: the last admitted."""
        s.preempt(next(reversed(s.running)))

    def fits(self, s: EngineState, request: int, cached: int) -> bool:
        """Say whether a waiting request has the blocks it needs: the whole prompt must fit, chunked or not."""
        return s.admission_need(request, s.left[request] - cached, cached) <= s.free_blocks()

    def next_chunk_fits(self, s: EngineState, request: int, cached: int, spare: int = 0) -> bool:
        """Say whether a waiting request has the blocks that its first chunk needs, beside `spare` ones."""
        budget = s.token_budget - s.num_decoding - sum(tokens for _, tokens in s.chunks)
        tokens = min(s.left[request] - cached, self.most_of_a_prompt, budget)
        return s.admission_need(request, tokens, cached) + spare <= s.free_blocks()

    def may_admit(self, s: EngineState, request: int) -> bool:
        """Say whether a request that fits may be admitted now."""
        return True

    def admit(self, s: EngineState, budget: int, most: int = UNLIMITED) -> None:
        """Admit waiting requests, and say for how long nothing changes."""
        waiting = s.waiting
        s.deaf = not budget
        if waiting and budget:
            seats = s.max_num_seqs - len(s.running) - len(s.leaving)
            most_of_a_prompt = self.most_of_a_prompt
            refused = False
            while budget and seats > 0 and most and waiting:
                request = waiting.head()
                cached = s.cached_tokens(request) if s.cache is not None else 0
                if (s.tight and not self.fits(s, request, cached)) or not self.may_admit(s, request):
                    refused = True
                    break
                waiting.pop()
                s.admit(request, cached)
                tokens = s.left[request]
                if tokens > most_of_a_prompt:
                    tokens = most_of_a_prompt
                if tokens > budget:
                    tokens = budget
                if s.tight:
                    s.schedule(request, tokens)
                else:
                    s.chunks.append((request, tokens))
                budget -= tokens
                seats -= 1
                most -= 1
            # Nobody can be admitted before the run is over, so an arrival changes nothing.
            s.deaf = not budget or seats <= 0 or (refused and self.arrivals_queue_behind)
        if s.chunks:
            request, tokens = s.chunks[0]
            s.hold = s.left[request] // tokens if len(s.chunks) == 1 and not budget else 1

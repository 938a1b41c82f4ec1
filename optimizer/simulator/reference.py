"""The reference mode: every step by itself, every request by itself, no closed form and no counter by offset.

Slow and plain on purpose: it says what the event-compressed loop must give. The policy is asked before every
step, with `tight` always set, so it also finds out policies whose promises (`hold`, `deaf`, not being asked
while nothing waits) are not true. The verbs of policies, the prefix cache and the step times it shares with the
loop that it checks; the golden traces and `optimizer.check` stand for these.
"""

from __future__ import annotations

from typing import Any

from optimizer.simulator.loop import Loop
from optimizer.simulator.state import NEVER, EngineState


class ReferenceState(EngineState):
    """Engine state that knows each decoding request's tokens and counts everything anew when asked."""

    __slots__ = ("decoding", "tokens_out")

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.tokens_out = [0] * len(self.left)
        self.decoding: dict[int, None] = {}

    def is_decoding(self, request: int) -> bool:
        """Whether the request takes part in decode steps."""
        return request in self.decoding

    def generated(self, request: int) -> int:
        """Give the output tokens that the request has so far."""
        return self.tokens_out[request]

    def context(self, request: int) -> int:
        """Give the tokens that the request has in the KV cache."""
        return self.computed[request]

    def held_tokens(self) -> int:
        """Give the tokens in the KV cache, shared ones counted for each request."""
        return sum(self.computed[request] for request in (*self.running, *self.leaving))

    def used_blocks(self) -> int:
        """Give the KV blocks held between steps (without prefix caching)."""
        return sum(self.blocks_of(request) for request in (*self.running, *self.leaving))

    def decode_need(self, steps: int = 1) -> int:
        """Give the blocks that the decoding requests take in the next step."""
        assert steps == 1
        return sum(self.computed[request] % self.block_tokens == 0 for request in self.decoding)

    def _join(self, request: int, generated: int) -> None:
        self.tokens_out[request] = generated
        self.decoding[request] = None
        self.num_decoding = len(self.decoding)
        self.recorder.opened[request] = self.recorder.count

    def _leave(self, request: int) -> None:
        self._generated[request] = self.tokens_out[request]
        del self.decoding[request]
        self.num_decoding = len(self.decoding)
        self.recorder.left(request)

    def completed(self, request: int) -> bool:
        """Say whether a request whose prompt is done is finished by the token of that; if not, let it decode."""
        self.tokens_out[request] += 1
        return super().completed(request)

    def decode_one(self, request: int) -> bool:
        """Decode one token of a request; say whether it was its last."""
        self.computed[request] += 1
        self.tokens_out[request] += 1
        return self.tokens_out[request] == self._output[request]


class ReferenceLoop(Loop):
    """Runs a policy step by step; events have the same order as in `Loop`."""

    state: ReferenceState

    def _run(self) -> None:
        s, policy = self.state, self.policy
        arrival = [*s.arrival, NEVER]
        now = upcoming = 0
        while self._unfinished:
            self.events += 1
            if self._lags:
                self._let_go()
            while arrival[upcoming] <= (self._seen if self._lags else now):
                s.waiting.push(upcoming)
                upcoming += 1
            s.arrived = upcoming
            s.begin(now, tight=s.pages)
            policy.step(s)
            self._watch_for_livelock()
            decoding = [] if s.stalled else [request for request in s.running if s.is_decoding(request)]
            until = min(arrival[upcoming], s.wake)
            now = self._step(now, decoding) if s.chunks or decoding else self._idle(now, until)

    def _step(self, now: int, decoding: list[int]) -> int:
        s, chunks = self.state, list(self.state.chunks)
        self._check_step(now, sum(tokens for _, tokens in chunks), len(decoding))
        if s.cache is not None:
            s.cache.take((s.decode_need() if decoding else 0) - s._taken)
        for request, tokens in chunks:
            s.recorder.chunks += (s.recorder.count, request, tokens, s.computed[request])
        prompt_tokens = sum(tokens for _, tokens in chunks)
        context = sum(s.computed[request] + 1 for request in decoding)
        took = self.clock.step(
            prompt_tokens,
            sum(n * s.computed[r] + n * (n + 1) // 2 for r, n in chunks),
            len(chunks),
            sum(s.computed[r] + n for r, n in chunks),
            len(decoding),
            context,
        )
        self._seen = now
        s.recorder.runs.append((now, now + took, took, 1, len(decoding), context, prompt_tokens))
        now += took
        s.clock += bool(decoding)
        finished = [request for request in decoding if s.decode_one(request)]
        if finished:
            self._preemptions_at_progress = s.preemptions
        s.publish_decoded(whole_steps=True)
        for request in finished:
            s._leave(request)
            self._done(request, now)
        for request, tokens in chunks:
            s.computed[request] += tokens
            s.left[request] -= tokens
            s.idle_tokens += tokens
            if not s.left[request]:
                self._complete_prompt(request, now)
        s.chunks.clear()
        return now

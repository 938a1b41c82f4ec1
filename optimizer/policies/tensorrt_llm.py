"""TensorRT-LLM's in-flight batching: three ways to decide who gets KV."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.policies.base import register
from optimizer.policies.mechanism import ChunkedPrefill
from optimizer.simulator.state import EngineState


@register("tensorrt-llm-no-evict")
@dataclass
class GuaranteedNoEvict(ChunkedPrefill):
    """TensorRT-LLM GUARANTEED_NO_EVICT: admits only who can be served to the end, by its cap; never pauses.

    A started request is always in the batch. A new one enters if blocks for prompt and cap fit beside those
    reserved for all that run; the first that does not fit ends the scan.
    Source: NVIDIA/TensorRT-LLM `capacityScheduler.cpp`.
    """

    def start(self, state: EngineState) -> None:
        """Nothing is reserved yet."""
        self._reserved = 0

    def _life(self, s: EngineState, request: int) -> int:
        tokens = s.prompt_tokens[request] + s.cap[request]
        return min(-(-tokens // s.block_tokens), s.blocks)

    def may_admit(self, s: EngineState, request: int) -> bool:
        """Say whether the request's longest life can be reserved, and do so."""
        blocks = self._life(s, request)
        if self._reserved + blocks > s.blocks:
            return False
        self._reserved += blocks
        return True

    def finished(self, state: EngineState, request: int) -> None:
        """Free the reservation."""
        self._reserved -= self._life(state, request)


@register("tensorrt-llm-static")
@dataclass
class StaticBatch(GuaranteedNoEvict):
    """TensorRT-LLM STATIC_BATCH: as no-evict, but admits only when nothing is active."""

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        s = state
        self._forming = not s.running
        # The whole batch is formed in one scan, however many steps its prompts then take.
        while self._forming and s.waiting and s.free_seats() > 0 and self.may_admit(s, s.waiting.head()):
            request = s.waiting.pop()
            s.admit(request, s.cached_tokens(request))
        self._forming = False
        super().step(s)
        s.deaf = bool(s.running)

    def may_admit(self, s: EngineState, request: int) -> bool:
        """Say whether the request belongs to the batch that is formed now."""
        return self._forming and super().may_admit(s, request)


@register("tensorrt-llm-max-utilization")
@dataclass
class MaxUtilization(ChunkedPrefill):
    """TensorRT-LLM MAX_UTILIZATION: needs blocks for the next step only; pauses the last started if short."""

    def fits(self, s: EngineState, request: int, cached: int) -> bool:
        """Say whether the next chunk fits."""
        return self.next_chunk_fits(s, request, cached)

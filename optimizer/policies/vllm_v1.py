"""vLLM V1: one token budget for prompts and decodes alike, decodes first, recompute under KV pressure."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.policies.base import register
from optimizer.policies.mechanism import ChunkedPrefill
from optimizer.simulator.decoding import UNLIMITED
from optimizer.simulator.state import EngineState


@register("vllm-v1")
@dataclass
class VllmV1(ChunkedPrefill):
    """vLLM V1: unified scheduler, chunked prefill, first come first served, preempts the last admitted.

    Every step: requests that run get their tokens in order of admission (a decode one, a prompt what is left
    of it and of the budget); where blocks run out the last admitted is thrown out and waits in front. Then,
    if nobody was thrown out, waiting requests are admitted while budget, seats and blocks last.

    The options are vLLM's, with its defaults. `long_prefill_token_threshold` caps the tokens of a prompt per
    step (0: no cap); decodes that the budget does not reach then are held back for the step. `watermark` is
    the share of the blocks that admissions leave free while anybody runs. `reserve_full_prompt`
    (vLLM: scheduler_reserve_full_isl): blocks for the whole prompt must be free, not only for its first chunk.

    Source: vllm-project/vllm 0.26, vllm/v1/core/sched/scheduler.py; tests/golden holds what that decides.
    """

    long_prefill_token_threshold: int = 0
    watermark: float = 0.0
    reserve_full_prompt: bool = True

    def __post_init__(self) -> None:
        self.demand(
            "long_prefill_token_threshold", self.long_prefill_token_threshold >= 0, "tokens, or 0 for no cap"
        )
        self.most_of_a_prompt = self.long_prefill_token_threshold or UNLIMITED
        self.demand("watermark", 0 <= self.watermark < 1, "a share from 0 to below 1")

    def margin_tokens(self, state: EngineState) -> int:
        """Give what must stay free: the watermark, and prompts in progress that took no blocks yet."""
        if self.long_prefill_token_threshold:
            return state.blocks * state.block_tokens  # any number of them: blocks are always counted
        return self._spare_blocks(state) * state.block_tokens

    def _spare_blocks(self, s: EngineState) -> int:
        # vLLM takes the share of all blocks, its null block included.
        return int(self.watermark * (s.blocks + 1))

    def fits(self, s: EngineState, request: int, cached: int) -> bool:
        """Say whether a waiting request has the blocks it needs, above the watermark."""
        spare = self._spare_blocks(s) if s.running else 0
        if not self.reserve_full_prompt:
            return self.next_chunk_fits(s, request, cached, spare)
        return s.admission_need(request, s.left[request] - cached, cached) + spare <= s.free_blocks()

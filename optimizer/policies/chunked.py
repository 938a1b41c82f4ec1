"""Systems with chunked prefill beside decodes: Sarathi, Sarathi-Serve, DeepSpeed-FastGen."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.policies.base import register
from optimizer.policies.mechanism import ChunkedPrefill
from optimizer.simulator.state import EngineState


@register("sarathi-serve")
@dataclass
class SarathiServe(ChunkedPrefill):
    """Sarathi-Serve: stall-free batching; all decodes, then chunks of prompts up to the token budget.

    A prompt is admitted only if blocks for the whole of it are free above a watermark, and they are its own
    from then on. Differences to vLLM V1: the watermark, and that blocks are promised at admission.

    `watermark`: share of the blocks that admissions leave free.
    Source: microsoft/sarathi-serve `sarathi_scheduler.py`; OSDI 2024.
    """

    watermark: float = 0.01

    def __post_init__(self) -> None:
        self.demand("watermark", 0 <= self.watermark < 1, "a share from 0 to below 1")

    def margin_tokens(self, state: EngineState) -> int:
        """Give what the watermark keeps free."""
        return (int(self.watermark * state.blocks) + 1) * state.block_tokens

    def promised(self, s: EngineState) -> int:
        """Give the blocks that prompts which have begun still need, beyond what this step gives them."""
        whole = sum(s.chunk_need(r, s.left[r]) for r in s.prefilling)
        return whole - sum(s.chunk_need(r, n) for r, n in s.chunks)

    def serve_running_tight(self, s: EngineState) -> int:
        """Give running requests their tokens; a decode takes no block that is promised to a prompt."""
        before = s.preemptions
        while s.decode_need() > s.free_blocks() - self.promised(s):
            self.throw_out(s)
        budget = super().serve_running_tight(s)
        return budget if s.preemptions == before else -1

    def fits(self, s: EngineState, request: int, cached: int) -> bool:
        """Say whether the whole prompt fits above the watermark, beside what is promised already."""
        free = s.free_blocks() - self.promised(s)
        spare = int(self.watermark * s.blocks) if s.running else 0
        return free - s.admission_need(request, s.left[request] - cached, cached) >= spare


@register("sarathi")
@dataclass
class Sarathi(SarathiServe):
    """Sarathi: every step is one chunk of one prompt, topped up with all decodes to a fixed size.

    The size is the engine's token budget; the chunk is what the decodes leave of it.
    Source: arXiv 2308.16369.
    """

    def admit(self, s: EngineState, budget: int, most: int = 1) -> None:
        """Admit one request, if no prompt is in progress."""
        super().admit(s, budget, 0 if s.chunks else most)


@register("fastgen")
@dataclass
class FastGen(ChunkedPrefill):
    """DeepSpeed-FastGen, Dynamic SplitFuse: every forward pass is filled to exactly the token budget.

    One token per generating request that has room for it (the others are held back, their KV kept), then
    prompts in order, split so that the budget is met; a prompt starts only if blocks exist for all of it.
    If nothing at all can run, the last request that holds KV is thrown out.
    Source: deepspeedai/DeepSpeed-MII `ragged_batching.py`.
    """

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        s = state
        for request in list(s.held):
            s.resume(request)
        super().step(s)

    def serve_running_tight(self, s: EngineState) -> int:
        """Give tokens to all who have room; throw out only if that is nobody."""
        while True:
            self._hold_back_whom_blocks_fail(s)
            s.take_decode_blocks()
            budget = s.token_budget - s.num_decoding
            for request in s.prefilling:
                tokens = min(s.left[request], self.most_of_a_prompt, budget)
                if tokens and s.chunk_need(request, tokens) <= s.free_blocks():
                    s.schedule(request, tokens)
                    budget -= tokens
            if s.num_decoding or s.chunks or not s.running:
                return budget if not s.held else -1
            self.throw_out(s)
            for request in list(s.held):
                s.resume(request)

    def _hold_back_whom_blocks_fail(self, s: EngineState) -> None:
        lacking = s.decode_need() - s.free_blocks()
        if lacking <= 0:
            return
        for request in reversed(list(s.running)):
            if s.is_decoding(request) and s.context(request) % s.block_tokens == 0:
                s.hold_back(request)
                lacking -= 1
                if lacking == 0:
                    return

"""vLLM V0: prompts first, whole and by themselves; decodes in between."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.errors import PolicyError
from optimizer.policies.base import Policy, register
from optimizer.simulator.state import EngineState


@register("vllm-v0")
@dataclass
class VllmV0(Policy):
    """vLLM V0: prefill first and exclusive, paged KV with a watermark, preempts the latest arrived.

    If at least one waiting prompt can be admitted (order of arrival; token budget, seats, blocks above the
    watermark), the step computes such prompts whole and nothing else. Otherwise all decode; where blocks run
    out, the latest arrived is thrown out and goes to the front of the queue. A prompt above the token budget
    runs alone: V0 sets its budget to the model's length.

    `watermark`: share of the blocks that admissions leave free. Preemption is by recompute, as V0's is for
    requests of one sequence. Source: vllm-project/vllm, vllm/core/scheduler.py; SOSP 2023.
    """

    watermark: float = 0.01

    has_budget = False

    def __post_init__(self) -> None:
        self.demand("watermark", 0 <= self.watermark < 1, "a share from 0 to below 1")

    def margin_tokens(self, state: EngineState) -> int:
        """Give what the watermark keeps free."""
        return (int(self.watermark * state.blocks) + 1) * state.block_tokens

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        self._admit(state)
        if state.chunks:
            state.stalled = True
        elif state.tight:
            while state.decode_need() > state.free_blocks():
                state.preempt(max(state.running))
            state.take_decode_blocks()

    def _admit(self, s: EngineState) -> None:
        tokens = 0
        blocked = False
        while s.waiting and s.free_seats() > 0:
            request = s.waiting.head()
            cached = s.cached_tokens(request)
            whole = s.left[request] - cached
            if s.chunks and tokens + whole > s.token_budget:
                break
            if s.tight and not self._has_blocks(s, request, whole, cached):
                blocked = True
                break
            s.waiting.pop()
            s.admit(request, cached)
            s.schedule(request, whole)
            tokens += whole
        s.deaf = blocked or s.free_seats() <= 0

    def _has_blocks(self, s: EngineState, request: int, tokens: int, cached: int) -> bool:
        spare = int(self.watermark * s.blocks)
        whole = -(-(tokens + cached) // s.block_tokens)
        if s.blocks - whole < spare:
            if not s.generated(request):
                raise PolicyError(
                    f"{self.name} never admits request {s.requests.name(request)}: its prompt takes {whole} of "
                    f"{s.blocks} KV blocks and {spare} must stay free; lower the policy option watermark"
                )
            spare = 0  # it was admitted before and has grown since: let it finish alone
        return s.free_blocks() - s.admission_need(request, tokens, cached) >= spare

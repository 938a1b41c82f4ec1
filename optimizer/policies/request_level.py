"""Request-level batching: a batch is formed when the engine is free, and runs until its last member is done."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.errors import InputError
from optimizer.policies.base import Policy, register
from optimizer.simulator.reserve import Reservations
from optimizer.simulator.state import EngineState
from optimizer.units import ticks


@register("fastertransformer")
@dataclass
class FasterTransformer(Policy):
    """FasterTransformer: static batches, KV reserved for the longest sequence, freed when all are done.

    Members that are done keep their memory and their seat, and nobody joins. `max_batch_size` 0 means the
    engine's seats. Source: microsoft/vidur `faster_transformer_replica_scheduler.py` (there, as here, a
    finished member costs no compute).
    """

    max_batch_size: int = 0
    max_sequence_tokens: int = 2048

    pages = False
    has_budget = False

    def __post_init__(self) -> None:
        self.demand("max_batch_size", self.max_batch_size >= 0, "a size, or 0 for the engine's seats")
        self.demand("max_sequence_tokens", self.max_sequence_tokens >= 1, "at least 1")

    def start(self, state: EngineState) -> None:
        """Set up the memory."""
        self.memory = Reservations(state, contiguous=True)
        self._length = max(self.max_sequence_tokens, state.model_len)
        self.most = min(self.max_batch_size or state.max_num_seqs, state.max_num_seqs)

    def batch_size(self, state: EngineState) -> int:
        """Say how many of the waiting requests form a batch now; 0: wait on."""
        return min(len(state.waiting), self.most)

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        s = state
        s.deaf = True
        if s.running or s.leaving:
            return
        for _ in range(self.batch_size(s)):
            if not self.memory.start(s.waiting.head(), self._length):
                break
        s.deaf = bool(s.chunks)

    def finished(self, state: EngineState, request: int) -> None:
        """Free the memory of the batch with its last member."""
        if not state.running and not state.leaving:
            for member in list(self.memory.held):
                self.memory.give_back(member)


@register("triton-dynamic")
@dataclass
class TritonDynamic(FasterTransformer):
    """Triton's dynamic batcher in front of a request-level engine: preferred sizes and a queueing delay.

    A full batch goes at once; so does the largest preferred size that can be formed; otherwise the oldest
    request waits for `max_queue_delay_s` and what is there goes. `preferred_batch_sizes`: numbers separated
    by "/", empty for none. Source: Triton Inference Server, model configuration, dynamic batcher.
    """

    max_queue_delay_s: float = 0.0
    preferred_batch_sizes: str = ""

    def start(self, state: EngineState) -> None:
        """Read the preferred sizes."""
        super().start(state)
        try:
            sizes = [int(size) for size in self.preferred_batch_sizes.split("/") if size]
        except ValueError:
            sizes = [0]
        if any(not 0 < size <= self.most for size in sizes) or not self.max_queue_delay_s >= 0:
            raise InputError(
                f"preferred_batch_sizes {self.preferred_batch_sizes!r} and max_queue_delay_s {self.max_queue_delay_s}; "
                f"expected sizes from 1 to {self.most} such as 4/8, and a delay >= 0",
                field="policy-option",
            )
        self.preferred = sorted(sizes, reverse=True)

    def batch_size(self, state: EngineState) -> int:
        """Say how many of the waiting requests form a batch now; 0: wait on."""
        there = len(state.waiting)
        if not there or there >= self.most:
            return min(there, self.most)
        for size in self.preferred:
            if there >= size:
                return size
        patience = state.arrival[state.waiting.head()] + ticks(self.max_queue_delay_s)
        if state.now >= patience:
            return there
        state.wake = patience
        return 0

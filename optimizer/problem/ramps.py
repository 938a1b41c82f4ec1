"""KV ramps: an instance in equal rounds, the problem that the theory of LLM scheduling is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from optimizer.errors import InputError
from optimizer.problem.columns import Floats, Ints
from optimizer.problem.instance import Instance


@dataclass(frozen=True, slots=True, eq=False)
class Ramps:
    """Requests whose KV grows by a token a round, under a limit of memory and of seats; whole rounds only.

    A request that starts at round t (0-based) runs in rounds t, ..., t + rounds - 1 without a break, holds
    `ceil((prompt + j) / block_tokens)` blocks in its j-th one (j from 0), and completes at t + rounds. A step of
    an engine that takes equally long whatever it computes is such a round: the first computes the prompt
    and samples a token, the others decode one each.

    Attributes
    ----------
    prompt, rounds
        Tokens held in the first round; rounds (= output tokens). Both at least 1.
    arrival
        First round in which each may start.
    weight
        Importance in the sum of completions.
    capacity
        Blocks of KV.
    block_tokens
        Tokens per block.
    seats
        Most requests in a round.

    Notes
    -----
    The papers (arXiv 2502.07115, 2508.06133, 2606.22327) let a request hold s + j tokens in its j-th round,
    j from 1: that is `prompt` = s + 1 here.

    Examples
    --------
    >>> r = Ramps.of([2, 2], [3, 1], capacity=5)
    >>> r.area.tolist(), r.peak.tolist()
    ([9, 2], [4, 2])
    """

    prompt: Ints
    rounds: Ints
    arrival: Ints
    weight: Floats
    capacity: int
    block_tokens: int = 1
    seats: int = 2**31

    @classmethod
    def of(
        cls,
        prompt: object,
        rounds: object,
        *,
        capacity: int,
        arrival: object = None,
        weight: object = None,
        block_tokens: int = 1,
        seats: int = 2**31,
    ) -> Self:
        """Build ramps from lists; all arrive at round 0 and weigh 1 unless told otherwise."""
        p = np.asarray(prompt, np.int64)
        n = len(p)
        return cls(
            p,
            np.asarray(rounds, np.int64),
            np.zeros(n, np.int64) if arrival is None else np.asarray(arrival, np.int64),
            np.ones(n) if weight is None else np.asarray(weight, np.float64),
            capacity,
            block_tokens,
            seats,
        )

    @classmethod
    def from_instance(cls, instance: Instance, round_s: float | None = None) -> Self:
        """Read an instance in rounds of `round_s` seconds (default: the step of one request that decodes).

        Exact where every step of the engine takes `round_s` and whole prompts fit into the token budget; an
        approximation otherwise. Arrivals are rounded up.
        """
        requests, engine = instance.requests, instance.engine
        if round_s is None:
            round_s = max(piece.base_s for piece in engine.step_time.regimes[0].pieces)
        if not round_s > 0:
            raise InputError(f"round_s is {round_s}; expected seconds > 0")
        return cls(
            requests.prompt_tokens,
            requests.output_tokens,
            np.ceil(requests.arrival_s / round_s - 1e-9).astype(np.int64),
            np.ones(len(requests)) if requests.weight is None else requests.weight,
            engine.kv_blocks,
            engine.block_tokens,
            engine.max_num_seqs,
        )

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def peak(self) -> Ints:
        """Blocks held in the last round."""
        return -(-(self.prompt + self.rounds - 1) // self.block_tokens)

    @property
    def area(self) -> Ints:
        """Block-rounds that each request uses in all."""
        return self._blocks_until(self.prompt + self.rounds - 1) - self._blocks_until(self.prompt - 1)

    def _blocks_until(self, tokens: Ints) -> Ints:
        # sum of ceil(x / B) for x = 1..tokens
        full, rest = tokens // self.block_tokens, tokens % self.block_tokens
        return self.block_tokens * full * (full + 1) // 2 + rest * (full + 1)

    def profile(self, start: Ints) -> Ints:
        """Give the blocks in use by round, for starting rounds; rounds before the first start are in it."""
        end = int((start + self.rounds).max())
        change = np.zeros(end + 1, np.int64)
        for p, o, t in zip(
            self.prompt.tolist(), self.rounds.tolist(), np.asarray(start).tolist(), strict=True
        ):
            held = -(-(p + np.arange(o)) // self.block_tokens)
            change[t] += held[0]
            change[t + 1 : t + o] += np.diff(held)
            change[t + o] -= held[-1]
        return np.cumsum(change)[:end]

    def feasible(self, start: Ints) -> bool:
        """Say whether starting rounds respect arrivals, memory and seats."""
        start = np.asarray(start)
        if (start < self.arrival).any() or self.profile(start).max() > self.capacity:
            return False
        change = np.zeros(int((start + self.rounds).max()) + 1, np.int64)
        np.add.at(change, start, 1)
        np.add.at(change, start + self.rounds, -1)
        return bool(np.cumsum(change).max() <= self.seats)

    def total_completion(self, start: Ints) -> float:
        """Give the weighted sum of completion rounds."""
        return float((self.weight * (np.asarray(start) + self.rounds)).sum())


def equal_round_s(instance: Instance) -> float | None:
    """Give the length of a round of an instance that is `Ramps` in seconds; None if its rounds are not equal.

    They are where every step of the engine takes equally long, whole prompts fit beside all decodes into the token
    budget, and nothing can be thrown out, shared, or delayed by a step.

    Examples
    --------
    >>> from optimizer.problem import Engine, Requests, StepTime
    >>> engine = Engine(name="e", kv_blocks=9, preemption="none", step_time=StepTime.affine(base_s=0.5))
    >>> requests = Requests.from_columns({"prompt_tokens": [2], "output_tokens": [3]})
    >>> equal_round_s(Instance("one", requests, engine))
    0.5
    """
    engine, requests = instance.engine, instance.requests
    bases = {piece.base_s for regime in engine.step_time.regimes for piece in regime.pieces}
    rates = (
        v for regime in engine.step_time.regimes for piece in regime.pieces for k, v in piece if k != "base_s"
    )
    if len(bases) > 1 or any(rates) or engine.preemption != "none":
        return None
    together = int(requests.prompt_tokens.sum()) if len(requests) <= engine.max_num_seqs else engine.kv_tokens
    if engine.prefix_caching or engine.async_scheduling or together > engine.max_num_batched_tokens:
        return None
    return bases.pop()

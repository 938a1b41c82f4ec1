"""Steps of chunked prefill: positions of prompts laid end to end, and what a step between two of them computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

from optimizer.capacity.step_time import StepClock
from optimizer.errors import InputError
from optimizer.problem.engine import Engine
from optimizer.units import seconds

ChunkObjective = Literal["prefill-time", "ttft"]
Work = tuple[int, int, int, int]
"""Prefill tokens, attention, sequences and context of a step."""


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """Chunks by step.

    Attributes
    ----------
    steps
        For each step its chunks, (prompt, tokens).
    step_s
        Seconds of each step.
    ttft_s
        By prompt, seconds from the start of the first step to its first token.
    """

    steps: tuple[tuple[tuple[int, int], ...], ...]
    step_s: tuple[float, ...]
    ttft_s: tuple[float, ...]


class Label(NamedTuple):
    """A way to a place: what it costs, the context of all that decode there, and where it came from."""

    cost: int
    context: int
    before: Label | None
    place: int


class Road:
    """Positions, and what a step between two of them computes."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[int],
        decoding: Sequence[int],
        cached: Sequence[int],
        granule: int,
        objective: ChunkObjective,
    ) -> None:
        if not prompts or len(cached) != len(prompts):
            raise InputError(
                f"{len(prompts)} prompts and {len(cached)} numbers of cached tokens; expected as many, and one"
            )
        for i, (tokens, there) in enumerate(zip(prompts, cached, strict=True)):
            if not 0 <= there < tokens:
                raise InputError(
                    f"prompt {i} has {tokens} tokens and {there} cached; expected 0 <= cached < tokens"
                )
        if granule < 1 or min(decoding, default=1) < 1:
            raise InputError(f"granule {granule} or a context of {min(decoding, default=1)} is below 1")
        if len(decoding) + len(prompts) > engine.max_num_seqs:
            raise InputError(
                f"{len(decoding)} requests decode and {len(prompts)} are to come, and max_num_seqs is "
                f"{engine.max_num_seqs}; leave some prompts for later"
            )
        self.prompts, self.decoding, self.clock = list(prompts), list(decoding), StepClock(engine.step_time)
        self.budget = engine.max_num_batched_tokens
        # A place is (prompt, its tokens computed after arriving there); the first has computed nothing new.
        self.places: list[tuple[int, int]] = [(0, cached[0])]
        for i, (tokens, there) in enumerate(zip(prompts, cached, strict=True)):
            self.places += [(i, done) for done in [*range(there + granule, tokens, granule), tokens]]
        self.cached = list(cached)
        self.finished = [i + (done == prompts[i]) for i, done in self.places]
        self.total: list[int] = []
        for i, done in self.places:
            self.total.append(sum(prompts[:i]) - sum(cached[:i]) + done - cached[i])
        self.weight = [1 if objective == "prefill-time" else len(prompts) - m for m in self.finished]

    def chunks(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Give the chunks of a step: (prompt, tokens computed before, tokens)."""
        (first, done), (last, until) = self.places[start], self.places[end]
        found = []
        for i in range(first, last + 1):
            low = done if i == first else self.cached[i]
            high = until if i == last else self.prompts[i]
            if high > low:
                found.append((i, low, high - low))
        return found

    def work(self, start: int, end: int) -> Work:
        """Give a step's prefill tokens, attention, sequences and context, as `StepClock.step` wants them."""
        chunks = self.chunks(start, end)
        return (
            sum(n for _, _, n in chunks),
            sum(n * low + n * (n + 1) // 2 for _, low, n in chunks),
            len(chunks),
            sum(low + n for _, low, n in chunks),
        )

    def running(self, place: int) -> int:
        """Requests that decode in a step from there."""
        return len(self.decoding) + self.finished[place]

    def time(self, work: Work, place: int, context: int) -> int:
        """Give the time of a step in ticks."""
        decodes = self.running(place)
        return self.clock.step(*work, decodes, context + decodes)

    def context_after(self, start: int, end: int, context: int) -> int:
        """Give the context of all that decode after a step."""
        ended = sum(self.prompts[self.finished[start] : self.finished[end]])
        return context + self.running(start) + ended

    def plan(self, label: Label) -> ChunkPlan:
        """Walk a label's way again."""
        way = [label]
        while way[-1].before is not None:
            way.append(way[-1].before)
        way.reverse()
        steps, times, firsts, clock = [], [], [], 0
        for a, b in pairwise(way):
            steps.append(tuple((i, n) for i, _, n in self.chunks(a.place, b.place)))
            times.append(self.time(self.work(a.place, b.place), a.place, a.context))
            clock += times[-1]
            firsts += [clock] * (self.finished[b.place] - self.finished[a.place])
        return ChunkPlan(tuple(steps), tuple(map(seconds, times)), tuple(map(seconds, firsts)))

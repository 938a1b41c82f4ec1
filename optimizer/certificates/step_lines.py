"""Affine functions below the time of every step of an engine, and the proof that they are.

A line gives a step `base + sum of rate x amount`, with the amounts of `StepPiece`. It lies below the step-time model if in each
regime some convex combination of the regime's pieces lies above it at the corners of what a step can be: seats, token
budget, the tokens of the KV cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from optimizer.problem import Engine, Instance
from optimizer.problem.engine import StepPiece
from optimizer.units import ticks

FIELDS = tuple(StepPiece.model_fields)
"""`base_s` and the rates, in the order in which lines and pieces are written as tuples."""


class Work(NamedTuple):
    """What is multiplied by the rates of a line, in the order of `FIELDS`: steps first."""

    steps: int
    prefill_tokens: int
    prefill_attention: int
    prefill_seqs: int
    prefill_context: int
    decode_seqs: int
    decode_context: int


@dataclass(frozen=True, slots=True)
class Regime:
    """Steps of one phase with `low` to `high` tokens; their time is the largest of `pieces` (ticks, as `FIELDS`)."""

    phase: str
    low: int
    high: int
    pieces: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """An affine function, in ticks as `FIELDS`, and whole weights that prove it regime by regime, in order of `regimes`."""

    rates: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]

    def of(self, work: Work) -> int:
        """Give the least time, in ticks, of steps that do this work in all."""
        return sum(rate * amount for rate, amount in zip(self.rates, work, strict=True))


def regimes(engine: Engine) -> list[Regime]:
    """List the regimes of an engine's step-time model, as far as a step within its limits can reach them.

    >>> from optimizer.problem import StepTime
    >>> [r.phase for r in regimes(Engine(name="e", kv_blocks=9, step_time=StepTime.affine(base_s=1.0)))]
    ['decode', 'prefill', 'mixed']
    """
    room = kv_tokens(engine)
    tokens = engine.max_num_batched_tokens if room is None else min(engine.max_num_batched_tokens, room)
    most = {"decode": seats(engine), "prefill": tokens, "mixed": tokens}
    found = []
    for phase, limit in most.items():
        own = {r.min_tokens: r for r in engine.step_time.regimes if r.phase == phase}
        every = {r.min_tokens: r for r in engine.step_time.regimes if r.phase == "any"}
        chosen = own if 0 in own else every | own
        starts = sorted(chosen)
        for start, end in zip(starts, [*starts[1:], limit + 1], strict=True):
            low, high = max(start, 2 if phase == "mixed" else 1), min(end - 1, limit)
            if low > high or (phase == "mixed" and seats(engine) < 2):
                continue
            pieces = tuple(tuple(ticks(getattr(p, name)) for name in FIELDS) for p in chosen[start].pieces)
            found.append(Regime(phase, low, high, pieces))
    return found


def seats(engine: Engine) -> int:
    """Most requests in a step: each has a seat, and a KV block of its own unless prefixes are shared."""
    return engine.max_num_seqs if engine.prefix_caching else min(engine.max_num_seqs, engine.kv_blocks)


def kv_tokens(engine: Engine) -> int | None:
    """Most tokens of context in a step; None where shared prefixes let it pass the size of the cache."""
    return None if engine.prefix_caching else engine.kv_tokens


def corners(regime: Regime, engine: Engine) -> Iterator[Work]:
    """Give the corners of what a step of a regime can be, at the least attention.

    Every request of a step sits on a seat, and what it has in the KV cache fits into it beside the others.
    """
    room = kv_tokens(engine)
    for prefill, decode in _batches(regime, seats(engine)):
        for seqs in {1, seats(engine) - decode} if prefill else {0}:
            least = Work(1, prefill, prefill, seqs, prefill, decode, decode)
            yield least
            if room is not None and decode and room > prefill + decode:
                yield least._replace(decode_context=room - prefill)
            if room is not None and prefill and room > prefill + decode:
                yield least._replace(prefill_context=room - decode)


def _batches(regime: Regime, seated: int) -> list[tuple[int, int]]:
    """Corners of (prefill tokens, decoding requests)."""
    low, high = regime.low, regime.high
    if regime.phase == "decode":
        return [(0, low), (0, high)]
    if regime.phase == "prefill":
        return [(low, 0), (high, 0)]
    # A prefilling request sits on a seat, too.
    most = seated - 1
    found = []
    for total in (low, high):
        found += [(total - decode, decode) for decode in (1, min(most, total - 1))]
    if low <= most + 1 <= high:
        found.append((1, most))
    return found


def unlimited(engine: Engine) -> list[int]:
    """Give the places, in `FIELDS`, of amounts that no limit of the engine bounds."""
    names = ["prefill_attention"]
    if kv_tokens(engine) is None:
        names += ["prefill_context", "decode_context"]
    return [Work._fields.index(name) for name in names]


def proves(line: Line, engine: Engine) -> str | None:
    """Check that a line lies below every step's time: None if it does, else what is wrong."""
    if any(rate < 0 for rate in line.rates):
        return "a rate is negative"
    found = regimes(engine)
    if len(found) != len(line.weights):
        return f"it has weights for {len(line.weights)} regimes; the engine has {len(found)}"
    free = unlimited(engine)
    for regime, weights in zip(found, line.weights, strict=True):
        total = sum(weights)
        if len(weights) != len(regime.pieces) or min(weights, default=-1) < 0 or total <= 0:
            return f"weights {weights} do not fit {len(regime.pieces)} pieces of a {regime.phase} step"
        mixed = [
            sum(w * piece[x] for w, piece in zip(weights, regime.pieces, strict=True)) - total * line.rates[x]
            for x in range(len(FIELDS))
        ]
        if any(mixed[x] < 0 for x in free):
            return f"of a {regime.phase} step a quantity without limit costs less than the line says"
        for corner in corners(regime, engine):
            if sum(rate * amount for rate, amount in zip(mixed, corner, strict=True)) < 0:
                return f"a {regime.phase} step of {corner} takes less than the line says"
    return None


def least_work(instance: Instance) -> list[Work]:
    """Give the least that the steps of each request must compute in all, its own steps counted.

    A prompt is computed once, in as many steps as the token budget asks for at least; each further token is a decode. Blocks
    that a prefix cache may hold are left out of the prompt, but never its last token.
    """
    requests, budget = instance.requests, instance.engine.max_num_batched_tokens
    cached = _cacheable(instance)
    found = []
    for prompt, output, reused in zip(
        requests.prompt_tokens.tolist(), requests.output_tokens.tolist(), cached, strict=True
    ):
        own, more = prompt - reused, output - 1
        found.append(
            Work(
                steps=-(-own // budget) + more,
                prefill_tokens=own,
                prefill_attention=own * reused + own * (own + 1) // 2,
                prefill_seqs=1,
                prefill_context=prompt,
                decode_seqs=more,
                decode_context=more * prompt + more * (more + 1) // 2,
            )
        )
    return found


def _cacheable(instance: Instance) -> list[int]:
    requests, engine = instance.requests, instance.engine
    if requests.prefix is None or not engine.prefix_caching:
        return [0] * len(requests)
    blocks = [len(requests.prefix.of(i)) * requests.prefix.block_tokens for i in range(len(requests))]
    return [
        min(prompt - 1, held) for prompt, held in zip(requests.prompt_tokens.tolist(), blocks, strict=True)
    ]


def recomputes(instance: Instance) -> list[tuple[Work, Work]]:
    """Give what throwing a request out saves and what it costs, at the ends of the range of contexts x.

    A decode with a context of x is saved; the token comes out of a recompute of the x tokens instead, of which a prefix
    cache may hold all but the last. Attention, which only the recompute has more of, is left out: both are linear in x then.
    """
    requests, cached = instance.requests, instance.engine.prefix_caching
    ends = int(requests.prompt_tokens.min()) + 1, int((requests.prompt_tokens + requests.output_tokens).max())
    return [(Work(0, 0, 0, 0, 0, 1, x), Work(0, 1 if cached else x, 0, 1, x, 0, 0)) for x in ends]


def survives_preemption(line: Line, instance: Instance) -> bool:
    """Say whether throwing a request out never saves time by the line."""
    return all(line.of(saved) <= line.of(again) for saved, again in recomputes(instance))

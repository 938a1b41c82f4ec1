"""Step times in exact integers: a compiled `StepTime`, and closed forms for runs of equal steps.

While the same requests do the same things step after step, every quantity that a step time depends on
grows by a constant: contexts by one token per decode, a chunk's attention by chunk x chunk. So the time of
the j-th step of a run is a maximum of affine functions of j, and a run of k steps within one piece of
that maximum takes first * k + growth * k * (k - 1) / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from typing import NamedTuple, TypeVar

from optimizer.problem.engine import StepPiece, StepTime
from optimizer.units import ticks


class _Coefficients(NamedTuple):
    base: int
    prefill_token: int
    prefill_attention: int
    prefill_seq: int
    prefill_context: int
    decode_seq: int
    decode_context: int


T = TypeVar("T")
StepFunction = Callable[[int, int, int, int, int, int], int]

Piece = tuple[int, int]
"""Of a batch that only decodes, with a given number of requests: (constant, per token of context)."""


class StepClock:
    """Gives the time of a step in ticks (`optimizer.units`).

    Parameters
    ----------
    model
        Validated step-time model.

    Examples
    --------
    >>> clock = StepClock(StepTime.affine(base_s=0.004, per_prefill_token_s=2e-5, per_decode_seq_s=2e-5))
    >>> clock.step(prefill_tokens=100, decode_seqs=10) / 10**15
    0.0062
    """

    def __init__(self, model: StepTime) -> None:
        self._regimes: dict[str, list[tuple[int, tuple[_Coefficients, ...]]]] = {}
        for phase in ("prefill", "decode", "mixed"):
            own = {r.min_tokens: r for r in model.regimes if r.phase == "any"}
            exact = [r for r in model.regimes if r.phase == phase]
            if any(r.min_tokens == 0 for r in exact):
                own = {}
            own |= {r.min_tokens: r for r in exact}
            self._regimes[phase] = [
                (r.min_tokens, tuple(_compile(p) for p in r.pieces))
                for r in sorted(own.values(), key=lambda r: -r.min_tokens)
            ]
        self._functions = {
            phase: [(least, _function_of(pieces)) for least, pieces in found]
            for phase, found in self._regimes.items()
        }
        # With one regime per phase the look-up by tokens is skipped: this is called for every chunk.
        only = {phase: found[0][1] for phase, found in self._functions.items() if len(found) == 1}
        self._prefill_only = only.get("prefill")
        self._mixed_only = only.get("mixed")
        self.prompt_step: StepFunction = self.step
        """`step` for steps with a prompt in them, by the shortest way there is."""
        if self._regimes["prefill"] == self._regimes["mixed"] and self._mixed_only:
            self.prompt_step = self._mixed_only

    def step(
        self,
        prefill_tokens: int = 0,
        prefill_attention: int = 0,
        prefill_seqs: int = 0,
        prefill_context: int = 0,
        decode_seqs: int = 0,
        decode_context: int = 0,
    ) -> int:
        """Give the time of one step.

        Parameters
        ----------
        prefill_tokens, prefill_attention, prefill_seqs, prefill_context, decode_seqs, decode_context
            What the step computes, in the units of `StepPiece`; contexts are counted after the step.
        """
        if not prefill_tokens:
            function = _reached(self._functions["decode"], decode_seqs)
        elif decode_seqs:
            function = self._mixed_only or _reached(self._functions["mixed"], prefill_tokens + decode_seqs)
        else:
            function = self._prefill_only or _reached(self._functions["prefill"], prefill_tokens)
        return function(
            prefill_tokens, prefill_attention, prefill_seqs, prefill_context, decode_seqs, decode_context
        )

    def decode(self, decode_seqs: int) -> tuple[Piece, ...]:
        """Give the pieces of a step in which `decode_seqs` requests decode and nobody prefills.

        Only pieces that can be the largest for some context, in ascending order of slope.
        """
        return _upper_envelope(
            sorted(
                (c.decode_context, c.base + c.decode_seq * decode_seqs)
                for c in _reached(self._regimes["decode"], decode_seqs)
            )
        )


def _reached(regimes: list[tuple[int, T]], tokens: int) -> T:
    """Give what the regime with the largest `min_tokens` reached holds (largest first in the list)."""
    return next(found for least, found in regimes if tokens >= least)


def _function_of(pieces: tuple[_Coefficients, ...]) -> StepFunction:
    """Write the maximum of some pieces as a Python function: no loop, no zero, shared slopes taken out once.

    A step with a prompt in it is priced more often than anything else is done; this is three times as fast as
    going through the coefficients. The text is made of integers and our own names alone.
    """
    groups: dict[tuple[int, int, int, int], list[_Coefficients]] = {}
    for piece in dict.fromkeys(pieces):
        shared = (piece.prefill_attention, piece.prefill_seq, piece.prefill_context, piece.decode_context)
        groups.setdefault(shared, []).append(piece)
    lines = ["def step(tokens, attention, seqs, context, decodes, decode_context):"]
    for number, (shared, members) in enumerate(groups.items()):
        for place, piece in enumerate(members):
            terms = _terms((piece.prefill_token, "tokens"), (piece.decode_seq, "decodes"))
            lines.append(f"    {'other' if place else 'time'} = {piece.base}{terms}")
            if place:
                lines.append("    if other > time: time = other")
        terms = _terms(*zip(shared, ("attention", "seqs", "context", "decode_context"), strict=True))
        if terms:
            lines.append(f"    time += 0{terms}")
        if len(groups) > 1:
            lines.append("    longest = time" if number == 0 else "    if time > longest: longest = time")
    lines.append(f"    return {'time' if len(groups) == 1 else 'longest'}")
    namespace: dict[str, StepFunction] = {}
    exec("\n".join(lines), namespace)
    return namespace["step"]


def _terms(*products: tuple[int, str]) -> str:
    return "".join(f" + {factor} * {name}" for factor, name in products if factor)


def _compile(piece: StepPiece) -> _Coefficients:
    return _Coefficients(
        ticks(piece.base_s), ticks(piece.per_prefill_token_s), ticks(piece.per_prefill_attention_s),
        ticks(piece.per_prefill_seq_s), ticks(piece.per_prefill_context_s),
        ticks(piece.per_decode_seq_s), ticks(piece.per_decode_context_s),
    )  # fmt: skip


def _upper_envelope(lines: list[tuple[int, int]]) -> tuple[Piece, ...]:
    """Keep the (slope, constant) lines that are the largest somewhere on x >= 0."""
    kept: list[tuple[int, int]] = []
    for slope, constant in lines:
        while kept and kept[-1][1] <= constant:
            kept.pop()
        # The middle one of three is never the largest if the outer two cross before it takes over.
        while len(kept) > 1 and (kept[-2][1] - constant) * (kept[-1][0] - kept[-2][0]) <= (
            kept[-2][1] - kept[-1][1]
        ) * (slope - kept[-2][0]):
            kept.pop()
        kept.append((slope, constant))
    return tuple((constant, slope) for slope, constant in kept)


def steps_to_reach(span: int, first: int, growth: int) -> int:
    """Give the least k >= 1 such that k steps of a run take at least `span` ticks.

    The run takes first * k + growth * k * (k - 1) / 2.

    >>> steps_to_reach(span=100, first=10, growth=0), steps_to_reach(101, 10, 0), steps_to_reach(100, 10, 10)
    (10, 11, 4)
    """
    if not growth:
        return max(1, -(-span // first))
    # Smallest k with growth*k^2 + (2*first - growth)*k - 2*span >= 0, exactly.
    linear = 2 * first - growth
    k = (isqrt(linear * linear + 8 * growth * span) - linear) // (2 * growth)
    if k < 1:
        return 1
    return k if 2 * first * k + growth * k * (k - 1) >= 2 * span else k + 1

"""Step times in exact integers: a compiled `StepTime`, and closed forms for runs of equal steps.

While the same requests do the same things step after step, every quantity that a step time depends on
grows by a constant: contexts by one token per decode, a chunk's attention by chunk x chunk. So the time of
the j-th step of a run is a maximum of affine functions of j, and a run of k steps within one piece of
that maximum takes first * k + growth * k * (k - 1) / 2.
"""

from __future__ import annotations

from math import isqrt
from typing import NamedTuple

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
        self._decode: dict[int, tuple[Piece, ...]] = {}
        only = {phase: found[0][1] for phase, found in self._regimes.items() if len(found) == 1}
        # With one regime per phase the look-up by tokens is skipped: this is called for every chunk.
        self._prefill_only = only.get("prefill")
        self._mixed_only = only.get("mixed")

    def _pieces(self, phase: str, tokens: int) -> tuple[_Coefficients, ...]:
        for least, pieces in self._regimes[phase]:
            if tokens >= least:
                return pieces
        raise AssertionError("a validated model covers every step")

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
            pieces = self._pieces("decode", decode_seqs)
        elif decode_seqs:
            pieces = self._mixed_only or self._pieces("mixed", prefill_tokens + decode_seqs)
        else:
            pieces = self._prefill_only or self._pieces("prefill", prefill_tokens)
        longest = 0
        for base, token, attention, seq, context, d_seq, d_context in pieces:
            time = (
                base + token * prefill_tokens + attention * prefill_attention + seq * prefill_seqs
                + context * prefill_context + d_seq * decode_seqs + d_context * decode_context
            )  # fmt: skip
            if time > longest:
                longest = time
        return longest

    def decode(self, decode_seqs: int) -> tuple[Piece, ...]:
        """Give the pieces of a step in which `decode_seqs` requests decode and nobody prefills.

        Only pieces that can be the largest for some context, in ascending order of slope.
        """
        found = self._decode.get(decode_seqs)
        if found is None:
            lines = sorted(
                (c.decode_context, c.base + c.decode_seq * decode_seqs)
                for c in self._pieces("decode", decode_seqs)
            )
            found = self._decode[decode_seqs] = _upper_envelope(lines)
        return found


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
        while len(kept) > 1 and _crossing(kept[-2], (slope, constant)) <= _crossing(kept[-2], kept[-1]):
            kept.pop()
        kept.append((slope, constant))
    return tuple((constant, slope) for slope, constant in kept)


def _crossing(low: tuple[int, int], high: tuple[int, int]) -> float:
    return (low[1] - high[1]) / (high[0] - low[0])


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

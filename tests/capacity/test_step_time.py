"""StepClock against a plain float evaluation of the same regimes, and its closed forms against counting."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.capacity import StepClock, steps_to_reach
from optimizer.problem.engine import StepPiece, StepRegime, StepTime
from optimizer.units import TICKS_PER_SECOND, seconds

rates = st.floats(0, 1e-4, allow_nan=False)
pieces = st.builds(
    StepPiece,
    base_s=st.floats(1e-6, 0.1),
    per_prefill_token_s=rates,
    per_prefill_attention_s=st.floats(0, 1e-8),
    per_prefill_seq_s=rates,
    per_prefill_context_s=st.floats(0, 1e-6),
    per_decode_seq_s=rates,
    per_decode_context_s=st.floats(0, 1e-6),
)
several = st.lists(pieces, min_size=1, max_size=4).map(tuple)


@st.composite
def models(draw: st.DrawFn) -> StepTime:
    regimes = [StepRegime(pieces=draw(several))]
    for phase in ("any", "prefill", "decode", "mixed"):
        for least in draw(
            st.sets(st.integers(1, 300) if phase == "any" else st.integers(0, 300), max_size=2)
        ):
            regimes.append(StepRegime(phase=phase, min_tokens=least, pieces=draw(several)))  # type: ignore[arg-type]
    return StepTime(regimes=tuple(regimes))


def naive(model: StepTime, **work: int) -> float:
    """The definition, in floats: an exact phase that reaches down to 0 hides `any`; the largest start wins."""
    prefill, decode = work.get("prefill_tokens", 0), work.get("decode_seqs", 0)
    phase = "mixed" if prefill and decode else "prefill" if prefill else "decode"
    exact = {r.min_tokens: r for r in model.regimes if r.phase == phase}
    every = {r.min_tokens: r for r in model.regimes if r.phase == "any"}
    regimes = exact if 0 in exact else every | exact
    regime = regimes[max(least for least in regimes if least <= prefill + decode)]
    return max(
        piece.base_s
        + piece.per_prefill_token_s * prefill
        + piece.per_prefill_attention_s * work.get("prefill_attention", 0)
        + piece.per_prefill_seq_s * work.get("prefill_seqs", 0)
        + piece.per_prefill_context_s * work.get("prefill_context", 0)
        + piece.per_decode_seq_s * decode
        + piece.per_decode_context_s * work.get("decode_context", 0)
        for piece in regime.pieces
    )


@given(models(), st.integers(0, 600), st.integers(0, 300), st.integers(0, 10**6), st.integers(1, 8))
def test_step_is_the_definition(model: StepTime, prefill: int, decode: int, context: int, seqs: int) -> None:
    if not prefill + decode:
        return
    work = {"decode_seqs": decode, "decode_context": context if decode else 0}
    if prefill:
        attention = prefill * (prefill + 1) // 2
        work |= {
            "prefill_tokens": prefill,
            "prefill_attention": attention,
            "prefill_seqs": seqs,
            "prefill_context": prefill,
        }
    # Each coefficient is rounded to a femtosecond, so a step of n units may be n half femtoseconds off.
    assert seconds(StepClock(model).step(**work)) == pytest.approx(naive(model, **work), rel=1e-9, abs=1e-9)


@given(models(), st.integers(1, 600), st.integers(0, 10**6))
def test_decode_pieces_are_the_step(model: StepTime, decode: int, context: int) -> None:
    clock = StepClock(model)
    envelope = clock.decode(decode)
    assert max(constant + slope * context for constant, slope in envelope) == clock.step(
        decode_seqs=decode, decode_context=context
    )
    slopes = [slope for _, slope in envelope]
    assert slopes == sorted(set(slopes))


@given(models(), st.integers(1, 600))
def test_every_decode_piece_is_needed_but_the_steepest(model: StepTime, decode: int) -> None:
    constants = [constant for constant, _ in StepClock(model).decode(decode)]
    assert constants == sorted(set(constants), reverse=True)


@given(st.integers(0, 10**6), st.integers(1, 10**4), st.integers(0, 10**3))
def test_steps_to_reach_counts(span: int, first: int, growth: int) -> None:
    k, total = 1, first
    while total < span:
        total += first + growth * k
        k += 1
    assert steps_to_reach(span, first, growth) == k


@given(st.integers(1, 10**30), st.integers(1, 10**16), st.integers(1, 10**13))
def test_steps_to_reach_is_exact_on_large_numbers(span: int, first: int, growth: int) -> None:
    def taken(k: int) -> int:
        return first * k + growth * k * (k - 1) // 2

    k = steps_to_reach(span, first, growth)
    assert k >= 1
    assert taken(k) >= span
    assert k == 1 or taken(k - 1) < span


def test_a_regime_starts_at_its_token() -> None:
    slow = StepRegime(phase="decode", min_tokens=95, pieces=(StepPiece(base_s=2.0),))
    model = StepTime(regimes=(StepRegime(pieces=(StepPiece(base_s=1.0),)), slow))
    clock = StepClock(model)
    assert clock.step(decode_seqs=94) == TICKS_PER_SECOND
    assert clock.step(decode_seqs=95) == 2 * TICKS_PER_SECOND
    assert clock.step(prefill_tokens=95, prefill_seqs=1) == TICKS_PER_SECOND

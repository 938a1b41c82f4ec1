"""Engines and step-time models: defaults, limits, and messages that name the field."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from optimizer.capacity.step_time import StepClock
from optimizer.problem import Engine, StepPiece, StepRegime, StepTime

STEP_TIME = StepTime.affine(base_s=0.01)
PIECE = StepPiece(base_s=0.01)


def engine(**changes) -> Engine:
    return Engine(**{"name": "toy", "kv_blocks": 100, "step_time": STEP_TIME} | changes)


def test_the_defaults_are_vllms():
    """Blocks of 16 tokens, a budget of 8,192, 256 seats, no prefix caching."""
    e = engine()
    assert (e.block_tokens, e.max_num_batched_tokens, e.max_num_seqs) == (16, 8192, 256)
    assert (e.prefix_caching, e.max_model_len, e.origin) == (False, None, "given")
    assert e.kv_tokens == 1600


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "", "at least 1 character"),
        ("kv_blocks", 0, "greater than or equal to 1"),
        ("kv_blocks", -5, "greater than or equal to 1"),
        ("kv_blocks", 2.5, "fractional part"),
        ("kv_blocks", math.nan, "finite number"),
        ("kv_blocks", "many", "unable to parse"),
        ("kv_blocks", None, "valid integer"),
        ("kv_blocks", True, "not true or false"),
        ("max_model_len", True, "not true or false"),
        ("block_tokens", 0, "greater than or equal to 1"),
        ("block_tokens", 10**9, "less than or equal to 1048576"),
        ("block_tokens", 10**30, "less than or equal to 1048576"),
        ("max_num_batched_tokens", 0, "greater than or equal to 1"),
        ("max_num_seqs", 0, "greater than or equal to 1"),
        ("max_model_len", 1, "greater than or equal to 2"),
        ("prefix_caching", "perhaps", "valid boolean"),
        ("step_time", {}, "Field required"),
        ("step_time", {"regimes": []}, "at least 1 item"),
        ("origin", "guessed", "'measured', 'fitted', 'estimated' or 'given'"),
        ("gpus", 2, "Extra inputs are not permitted"),
    ],
)
def test_a_field_out_of_range_is_named(field, value, said):
    """Pydantic's own message, at the field's own name."""
    with pytest.raises(ValidationError, match=said) as caught:
        engine(**{field: value})
    assert caught.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize("field", ["name", "kv_blocks", "step_time"])
def test_what_has_no_default_must_be_given(field):
    """A missing field is named."""
    given = {"name": "toy", "kv_blocks": 100, "step_time": STEP_TIME}
    del given[field]
    with pytest.raises(ValidationError, match=f"(?s){field}.*Field required"):
        Engine(**given)


def test_seats_that_outnumber_the_budget_are_refused():
    """Every running request must get its token; as many as the budget is fine."""
    assert engine(max_num_seqs=64, max_num_batched_tokens=64).max_num_seqs == 64
    with pytest.raises(ValidationError, match="max_num_seqs 65 is above max_num_batched_tokens 64"):
        engine(max_num_seqs=65, max_num_batched_tokens=64)


def test_an_engine_does_not_change_and_replace_checks_again():
    """A changed copy passes the same checks as a new engine; the original stays."""
    e = engine()
    with pytest.raises(ValidationError, match="frozen"):
        e.kv_blocks = 7
    assert e.replace(kv_blocks=7).kv_blocks == 7
    assert e.kv_blocks == 100
    assert e.replace() == e
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        e.replace(kv_blocks=0)
    with pytest.raises(ValidationError, match="is above max_num_batched_tokens"):
        e.replace(max_num_batched_tokens=16)


def test_json_comes_back_as_the_same_engine():
    """All of it, the step-time model included."""
    e = engine(
        max_model_len=4096,
        prefix_caching=True,
        source="measured by hand",
        step_time=StepTime(
            regimes=(
                StepRegime(pieces=(PIECE, StepPiece(base_s=0.1 + 0.2, per_prefill_attention_s=1e-12))),
                StepRegime(phase="decode", min_tokens=9, pieces=(PIECE,)),
            )
        ),
    )
    assert Engine.model_validate_json(e.model_dump_json()) == e
    assert Engine.model_validate(e.model_dump(mode="json")) == e


@pytest.mark.parametrize("field", list(StepPiece.model_fields))
@pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "slow", True], ids=repr)
def test_every_coefficient_is_finite_and_not_negative(field, value):
    """A step never gets shorter by computing more."""
    with pytest.raises(ValidationError) as caught:
        StepPiece(**{field: value})
    assert caught.value.errors()[0]["loc"] == (field,)


def test_a_misspelt_coefficient_is_refused():
    """Instead of being left out in silence."""
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        StepTime.affine(base_s=0.01, per_decode_s=1e-5)


@pytest.mark.parametrize(
    ("regimes", "said"),
    [
        (
            [StepRegime(phase="prefill", pieces=(PIECE,)), StepRegime(phase="decode", pieces=(PIECE,))],
            "no regime covers 'mixed' from 0 tokens on",
        ),
        ([StepRegime(min_tokens=1, pieces=(PIECE,))], "no regime covers 'prefill' from 0 tokens on"),
        (
            [StepRegime(pieces=(PIECE,)), StepRegime(pieces=(PIECE,))],
            "two regimes of phase 'any' start at 0 tokens",
        ),
        (
            [StepRegime(pieces=(PIECE,)), *[StepRegime(phase="decode", min_tokens=8, pieces=(PIECE,))] * 2],
            "two regimes of phase 'decode' start at 8 tokens",
        ),
        (
            [
                StepRegime(pieces=(PIECE,)),
                StepRegime(phase="mixed", min_tokens=3, pieces=(StepPiece(per_decode_seq_s=1.0),)),
            ],
            "regime 'mixed' from 3 tokens has no piece with base_s > 0",
        ),
        (
            [StepRegime(pieces=(StepPiece(base_s=4e-16), StepPiece(per_decode_seq_s=1.0)))],
            "regime 'any' from 0 tokens has no piece with base_s > 0, rounded to femtoseconds",
        ),
    ],
    ids=["uncovered phase", "uncovered start", "twice any", "twice decode", "no time", "hardly any time"],
)
def test_a_model_covers_every_step_once(regimes, said):
    """The message names the phase and the number of tokens."""
    with pytest.raises(ValidationError, match=said):
        StepTime(regimes=tuple(regimes))


def test_exact_phases_alone_may_cover_every_step():
    """`any` is not needed where prefill, decode and mixed are all there; one more start may refine one."""
    exact = [StepRegime(phase=p, pieces=(PIECE,)) for p in ("prefill", "decode", "mixed")]
    model = StepTime(regimes=(*exact, StepRegime(phase="decode", min_tokens=64, pieces=(PIECE,))))
    assert len(model.regimes) == 4


def test_a_regime_has_a_piece_and_starts_at_no_negative_number():
    """An empty maximum is no time at all."""
    with pytest.raises(ValidationError, match="at least 1 item"):
        StepRegime(pieces=())
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        StepRegime(min_tokens=-1, pieces=(PIECE,))
    with pytest.raises(ValidationError, match="'any', 'prefill', 'decode' or 'mixed'"):
        StepRegime(phase="idle", pieces=(PIECE,))


def test_affine_is_one_piece_for_every_step():
    """The simplest model."""
    model = StepTime.affine(base_s=0.004, per_decode_seq_s=2e-5)
    assert model.regimes == (StepRegime(pieces=(StepPiece(base_s=0.004, per_decode_seq_s=2e-5),)),)


def test_a_scaled_model_takes_every_step_as_many_times_longer():
    model = StepTime.affine(base_s=0.004, per_prefill_token_s=2e-5, per_decode_context_s=1e-8)
    one, three = StepClock(model), StepClock(model.scaled(3.0))
    work = {"prefill_tokens": 70, "decode_seqs": 9, "decode_context": 900}
    assert three.step(**work) == 3 * one.step(**work)

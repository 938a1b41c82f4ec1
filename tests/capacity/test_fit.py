"""Fits: a model that is known comes back, and the measured engines are met as closely as the cards say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.capacity import engine_card, gpu, llm
from optimizer.capacity.fit import Group, errors, fit_step_time, split
from optimizer.capacity.host import Host, asynchronous, fit_host, fit_loop, kv_read_s
from optimizer.capacity.least_squares import non_negative
from optimizer.capacity.refit import RUN_65B, SYNCHRONOUS, WINDOW, fit_65b, read_host
from optimizer.capacity.steplog import StepLog, predict, read_step_log, windows
from optimizer.catalogue import catalogue_path
from optimizer.errors import InputError
from optimizer.problem.engine import StepPiece, StepRegime, StepTime

DATA = catalogue_path("models") / "measurements" / "h200"
TRUE = StepTime(
    regimes=(
        StepRegime(
            phase="decode",
            pieces=(StepPiece(base_s=0.005, per_decode_seq_s=1e-5, per_decode_context_s=3e-8),),
        ),
        StepRegime(
            pieces=(
                StepPiece(
                    base_s=0.006,
                    per_prefill_attention_s=1e-9,
                    per_decode_seq_s=1e-5,
                    per_decode_context_s=3e-8,
                ),
                StepPiece(
                    base_s=0.002,
                    per_prefill_token_s=2e-5,
                    per_prefill_attention_s=1e-9,
                    per_decode_seq_s=3e-5,
                    per_decode_context_s=3e-8,
                ),
            )
        ),
    )
)


def made(model: StepTime, steps: int = 2000, *, asynchronous: bool = False) -> StepLog:
    """A log that follows a model exactly."""
    rng = np.random.default_rng(1)
    decodes = rng.integers(0, 200, steps)
    prefill = np.where((rng.random(steps) < 0.5) | (decodes == 0), rng.integers(1, 4000, steps), 0)
    attention = prefill * (prefill + 1) // 2
    work = np.stack(
        [prefill, attention, (prefill > 0) * 1, decodes, decodes * rng.integers(1, 900, steps)], axis=1
    )
    none = np.zeros(steps)
    taken = predict(model, StepLog(none, none, none, work.astype(float), np.full(steps, "")))
    done = np.cumsum(taken)
    begun = np.r_[0.0, done[:-1]] - (0.001 if asynchronous else 0.0)
    return StepLog(begun, begun, done, work.astype(float), np.full(steps, "made"))


def test_a_known_model_comes_back() -> None:
    log = made(TRUE)
    found = errors(fit_step_time(log), log)
    assert found["all"].mean < 0.003
    assert set(found) == {"decode", "prefill", "mixed", "all"}


def test_stragglers_do_not_move_the_fit() -> None:
    log = made(TRUE)
    late = np.where(np.arange(len(log)) % 20 == 0, 0.05, 0.0)
    disturbed = StepLog(log.start_s, log.dispatched_s, log.completed_s + late, log.work, log.workload)
    assert errors(fit_step_time(disturbed), log)["all"].median < 0.01


def test_totals_of_an_asynchronous_log_are_enough() -> None:
    model = StepTime(regimes=TRUE.regimes[1:])
    log = made(model, asynchronous=True)
    rng = np.random.default_rng(2)
    jitter = np.where(
        rng.random(len(log)) < 0.3, 0.5 * np.diff(log.completed_s, append=log.completed_s[-1]), 0.0
    )
    stamped = StepLog(log.start_s, log.dispatched_s, log.completed_s + jitter, log.work, log.workload)
    fitted = fit_step_time(stamped, (Group("any"),), window=10)
    # Single steps are judged by the model that made them: a stamp of this log tells only totals.
    assert np.median(np.abs(predict(fitted, log) / predict(model, log) - 1)) < 0.02


def test_windows_leave_out_idleness() -> None:
    done = np.array([1.0, 2.0, 3.0, 9.0, 10.0, 11.0, 12.0, 13.0])
    start = np.array([0.0, 0.5, 1.5, 8.0, 8.5, 9.5, 10.5, 11.5])
    log = StepLog(start, start, done, np.ones((8, 5)), np.full(8, ""))
    first, end, taken = windows(log, 2)
    assert list(zip(first.tolist(), end.tolist(), taken.tolist(), strict=True)) == [
        (0, 2, 2.0),
        (4, 6, 2.0),
        (6, 8, 2.0),
    ]


def test_the_host_comes_back() -> None:
    """Of a run whose host is the bottleneck where many requests decode beside short prefills."""
    host = Host(hidden_s=0.001, busy_seq_s=6e-5)
    found = fit_host(TRUE, 3e-8, made(asynchronous(TRUE, host, 3e-8), asynchronous=True))
    assert (found.hidden_s, found.busy_seq_s) == pytest.approx((host.hidden_s, host.busy_seq_s))


def test_an_asynchronous_step_is_the_longer_of_gpu_and_host() -> None:
    model = StepTime(
        regimes=(
            StepRegime(
                pieces=(
                    StepPiece(base_s=0.007, per_decode_seq_s=1e-5),
                    StepPiece(base_s=0.002, per_prefill_token_s=2e-5, per_decode_context_s=5e-8),
                )
            ),
            StepRegime(phase="decode", pieces=(StepPiece(base_s=0.006, per_decode_context_s=5e-8),)),
        )
    )
    changed = asynchronous(model, Host(0.001, 5e-5), context_s=3e-8)
    work = np.array([[10, 55, 1, 100, 1000], [1000, 500500, 1, 0, 0], [0, 0, 0, 1, 10000]], float)
    times = predict(changed, StepLog(*(np.ones(3),) * 3, work, np.full(3, "")))
    # Launching and 101 requests; 1,000 tokens on the GPU; reading the weights and 10,000 tokens of context.
    assert times.tolist() == pytest.approx(
        [0.007 + 100 * 1e-5 + 101 * 5e-5, 0.001 + 0.02, 0.005 + 10000 * 3e-8]
    )


def test_between_two_steps_the_host_costs_a_synchronous_engine_time() -> None:
    log = made(TRUE)
    seqs = log.work[:, 2] + log.work[:, 3]
    start = np.cumsum(log.step_s + 0.001 + 2e-5 * seqs) - log.step_s
    apart = StepLog(start, start, start + log.step_s, log.work, log.workload)
    assert fit_loop(apart) == pytest.approx((0.001, 2e-5), rel=1e-6)
    alone = apart[np.flatnonzero(log.work[:, 3] == 0)]
    assert fit_loop(alone) == (0.0, 0.0), "after an idle moment there is nothing to tell"


def test_floors_share_a_curve() -> None:
    model = StepTime(
        regimes=tuple(
            StepRegime(
                min_tokens=start,
                pieces=(
                    StepPiece(base_s=floor),
                    StepPiece(base_s=0.002, per_prefill_token_s=2e-5, per_decode_seq_s=2e-5),
                ),
            )
            for start, floor in ((0, 0.006), (513, 0.02))
        )
    )
    log = made(model)
    fitted = fit_step_time(log, (Group("any", starts=(0, 513), pieces=1, floors=True),))
    np.testing.assert_allclose(predict(fitted, log), predict(model, log), rtol=1e-3)
    assert [r.pieces[0].base_s for r in fitted.regimes] == pytest.approx([0.006, 0.02], rel=1e-3)


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_synchronous_steps_of_the_h200(name: str) -> None:
    """What the gate in tests/accuracy holds for all steps, here by what a step does."""
    fitted, held_out = split(read_step_log(DATA / SYNCHRONOUS[name]))
    found = errors(fit_step_time(fitted), held_out)
    assert found["all"].median < 0.025
    assert found["all"].mean < 0.04
    assert abs(found["all"].total) < 0.01
    assert found["decode"].median < 0.03
    assert found["mixed"].median < 0.03
    assert found["prefill"].median < 0.06
    card = engine_card(name)
    assert card.fit_error["all"].median == pytest.approx(found["all"].median, abs=1e-3)


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_the_shipped_cards_are_the_fits(name: str) -> None:
    log = read_step_log(DATA / SYNCHRONOUS[name])
    context_s = kv_read_s(llm(name.partition("@")[0]), gpu("h200"))
    again = asynchronous(fit_step_time(split(log)[0]), read_host(), context_s)
    np.testing.assert_allclose(predict(again, log), predict(engine_card(name).step_time, log), rtol=5e-3)


def test_the_65b_card_meets_its_run() -> None:
    log = read_step_log(DATA / RUN_65B)
    card = engine_card("llama-65b-fp8@h200")
    found = errors(card.step_time, log, WINDOW)["all"]
    assert found.median < 0.01
    assert found.mean < 0.02
    # The whole run, its start included.
    assert predict(card.step_time, log).sum() == pytest.approx(log.completed_s[-1], rel=0.01)
    again = fit_65b(fit_step_time(split(read_step_log(DATA / SYNCHRONOUS["llama2-13b@h200"]))[0]))
    np.testing.assert_allclose(predict(again, log), predict(card.step_time, log), rtol=1e-2)


def test_non_negative_least_squares_is_optimal() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        matrix, target = rng.normal(size=(30, 6)), rng.normal(size=30)
        x = non_negative(matrix, target)
        gradient = matrix.T @ (target - matrix @ x)
        assert (x >= 0).all()
        assert (gradient < 1e-8).all()
        assert np.abs(gradient[x > 0]).max(initial=0.0) < 1e-8


HEAD = "start_s,dispatched_s,completed_s,prefill_tokens,prefill_seqs,prefill_attention,decode_seqs,decode_context\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: has no column 'start_s'"),
        (HEAD, "holds no steps"),
        (HEAD.replace("decode_seqs", "decoders") + "0,0,1,1,1,1,0,0\n", "has no column 'decode_seqs'"),
        (HEAD + "0,0,1,1,1,x,0,0\n", "line 2, field prefill_attention: 'x' is no number"),
        (HEAD + "0,0,1,1,1,1,0,0\n0,0,1,-1,1,1,0,0\n", "line 3, field prefill_tokens: '-1' is no number"),
        (HEAD + "0,0,1,nan,1,1,0,0\n", "line 2, field prefill_tokens"),
        (HEAD + "0,0,1\n", "line 2, field prefill_tokens: None is no number"),
        (HEAD + "0,2,1,1,1,1,0,0\n", "line 2, field completed_s: times run backwards"),
    ],
)
def test_a_wrong_log_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_step_log(path)


def test_too_few_steps() -> None:
    log = read_step_log(DATA / SYNCHRONOUS["llama2-13b@h200"])
    with pytest.raises(InputError, match="too few"):
        fit_step_time(log[np.arange(20)])

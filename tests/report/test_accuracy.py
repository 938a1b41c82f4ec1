from __future__ import annotations

import numpy as np
import pytest

from optimizer.capacity import engine, engine_card, estimate, estimated_card, gpu, llm
from optimizer.capacity.cards import FitError
from optimizer.problem import Instance, Requests
from optimizer.report.accuracy import known_error, regime_shares
from optimizer.simulator import simulate


def error(mean, total=0.0):
    return FitError(steps=9, median=0.5, mean=mean, total=total)


@pytest.fixture(scope="module")
def run():
    columns = {
        "arrival_s": [0.0, 0.1, 0.2],
        "prompt_tokens": [900, 9000, 3000],
        "output_tokens": [50, 20, 9],
    }
    return simulate(Instance("three", Requests.from_columns(columns), engine("llama3.1-8b@h200")))


def known(run, entries):
    card = engine_card("llama3.1-8b@h200").model_copy(update={"fit_error": entries})
    return known_error(run.instance.engine, run.schedule, card)


def test_shares_are_those_of_the_steps(run):
    steps = list(run.schedule.iterate())
    ends = [*(s.start_s for s in steps[1:]), run.schedule.end_s[-1]]
    times = dict.fromkeys(("prefill", "decode", "mixed"), 0.0)
    for step, end in zip(steps, ends, strict=True):
        # An idle moment between two steps is nobody's: runs end before it.
        end = min(end, run.schedule.end_s[np.searchsorted(run.schedule.start_s, step.start_s, "right") - 1])
        times["mixed" if step.prefill and step.decode else "prefill" if step.prefill else "decode"] += (
            end - step.start_s
        )
    total = sum(times.values())
    assert regime_shares(run.schedule) == pytest.approx({k: v / total for k, v in times.items()}, abs=1e-5)


def test_errors_of_regimes_are_weighted_with_their_time(run):
    shares = regime_shares(run.schedule)
    of = {"prefill": 0.1, "decode": 0.02, "mixed": 0.05}
    found = known(run, {name: error(mean) for name, mean in of.items()})
    expected = sum(shares[name] * of[name] for name in of)
    assert found.error == pytest.approx(expected, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((1 - expected, 1 + expected), abs=1e-5)


def test_the_error_of_a_sum_counts_where_it_is_larger(run):
    for total in (-0.2, 0.2):
        assert known(run, {"all": error(0.1, total)}).error == pytest.approx(0.2)
    assert known(run, {"all": error(0.1, 0.01)}).error == pytest.approx(0.1)


def test_a_regime_without_entry_takes_all_steps_else_the_worst_entry(run):
    found = known(run, {"decode": error(0.1), "all": error(0.2), "run x": error(0.9)})
    assert {name: of.of for name, of in found.regimes.items()} == {
        "prefill": "all",
        "decode": "decode",
        "mixed": "all",
    }
    found = known(run, {"run a": error(0.1), "run b": error(0.3)})
    assert {of.of for of in found.regimes.values()} == {"run b"}


def test_step_times_stay_above_zero_with_any_error(run):
    assert known(run, {"all": error(3.0)}).low > 0


@pytest.mark.parametrize(
    "name", ["llama3.1-70b-tp4@h100", "qwen3-8b@h100", "mixtral-8x7b-tp4@h200", "yi-34b@a100-80"]
)
def test_of_an_estimate_it_is_the_range_found_on_its_gpu(run, name):
    """With a shipped card or without one: from estimate / truth - 1 to factors on the estimate."""
    checked = gpu(name.partition("@")[2]).estimate_error
    found = known_error(engine(name), run.schedule)
    assert 1 / found.low - 1 == pytest.approx(max(checked.high, 0), abs=1e-4)
    assert 1 / found.high - 1 == pytest.approx(min(checked.low, 0), abs=1e-4)
    assert str(checked.points) in found.origin
    assert found == known_error(engine(name, max_num_seqs=32), run.schedule)


def test_the_estimate_itself_is_always_inside(run):
    card = estimated_card("llama3.1-8b@h100")
    for low, high in ((-0.3, -0.1), (0.1, 0.3)):
        off = card.estimate_error.model_copy(update={"low": low, "high": high})
        found = known_error(card.engine(), run.schedule, card.model_copy(update={"estimate_error": off}))
        assert found.low <= 1 <= found.high
        assert found.error > 0.05


def test_of_other_engines_nothing_is_known(run):
    unknown = (
        run.instance.engine.replace(name="mine", origin="given"),
        engine("opt-13b-tp1@a100-80-vllm"),
        engine("llama3.1-8b@l40s"),
        engine("llama3.1-8b@h100").replace(name="an estimate under another name"),
        estimate(llm("llama3.1-8b"), gpu("h100"), efficiency=gpu("h200").efficiency),
    )
    for own in unknown:
        found = known_error(own, run.schedule)
        assert found.to_document()["step_time_factors"] is None
        assert found.error is None
        assert found.origin
    assert "never checked" in known_error(unknown[2], run.schedule).origin

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.policies import make_policy
from optimizer.problem import Engine, Instance, Requests, StepPiece, StepRegime, StepTime
from optimizer.report.accuracy import KnownError
from optimizer.report.band import FIGURES, about, step_time_band
from optimizer.simulator import simulate


def off_by(low, high):
    return KnownError(low, high, "a guess", {})


def test_all_at_once_every_time_is_in_proportion(under_pressure):
    """With all requests at 0 nothing but step times moves the clock."""
    requests = under_pressure.instance.requests
    at_once = requests.replace(arrival_s=requests.arrival_s * 0)
    s = simulate(Instance("at once", at_once, under_pressure.instance.engine))
    figures, value = step_time_band(s, error=off_by(0.8, 1.25))["figures"], s.metrics.summary()
    for key in FIGURES:
        low, high = (0.8, 1.25)
        if key == "preemptions":
            low = high = 1.0
        elif key.endswith("per_s") and key != "goodput_per_s":
            low, high = 1 / high, 1 / low
        if key != "goodput_per_s":
            assert figures[key]["low"] == pytest.approx(low * value[key], rel=1e-6)
            assert figures[key]["high"] == pytest.approx(high * value[key], rel=1e-6)


def test_a_loaded_engine_is_worse_than_in_proportion(under_pressure):
    """Queues grow faster than step times: a band is no error bar drawn around a point."""
    figures = step_time_band(under_pressure, error=off_by(0.9, 1.1))["figures"]
    assert figures["ttft_mean_s"]["high"] > 1.12 * under_pressure.metrics.summary()["ttft_mean_s"]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 20), st.floats(0, 0.5)), min_size=1, max_size=12),
    error=st.floats(0, 0.5),
    policy=st.sampled_from(["vllm-v1", "vllm-v0", "srpt"]),
)  # fmt: skip
def test_the_figure_is_inside_its_band_and_without_error_it_is_a_point(lengths, error, policy):
    prompt, output, arrival = zip(*sorted(lengths, key=lambda row: row[2]), strict=True)
    columns = {"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output}
    engine = Engine(name="toy", kv_blocks=8, max_num_batched_tokens=64, max_num_seqs=4,
                    step_time=StepTime.affine(base_s=0.01, per_prefill_token_s=1e-4))  # fmt: skip
    s = simulate(Instance("drawn", Requests.from_columns(columns), engine), policy)
    value = s.metrics.summary()
    for e in (error, 0.0):
        for key, band in step_time_band(s, error=off_by(1 - e, 1 + e))["figures"].items():
            if value[key] is None:
                assert band is None
            elif e:
                assert band["low"] <= value[key] <= band["high"]
            else:
                assert band["low"] == value[key] == band["high"]


def test_a_ready_policy_starts_anew_each_time(under_pressure):
    instance = under_pressure.instance
    by_name = simulate(instance, "past-future", options={"history": 20})
    ready = simulate(instance, make_policy("past-future", history=20))
    policy = make_policy("past-future", history=20)
    error = off_by(0.9, 1.1)
    assert step_time_band(ready, policy=policy, error=error) == step_time_band(by_name, error=error)


def test_nothing_known_gives_no_figures(under_pressure):
    band = step_time_band(under_pressure)
    assert (band["error"], band["figures"]) == (None, None)
    assert "not known" in about(band)


def test_scaled_step_times_keep_their_form():
    model = StepTime(regimes=(
        StepRegime(pieces=(StepPiece(base_s=0.01), StepPiece(base_s=0.001, per_prefill_token_s=1e-4))),
        StepRegime(phase="decode", min_tokens=8, pieces=(StepPiece(base_s=0.02, per_decode_context_s=1e-7),)),
    ))  # fmt: skip
    twice = model.scaled(2.0)
    assert [(r.phase, r.min_tokens, len(r.pieces)) for r in twice.regimes] == [
        ("any", 0, 2),
        ("decode", 8, 1),
    ]
    for one, two in zip(model.regimes, twice.regimes, strict=True):
        for a, b in zip(one.pieces, two.pieces, strict=True):
            assert dict(b) == pytest.approx({name: 2 * value for name, value in a})
    assert model.scaled(1.0) == model

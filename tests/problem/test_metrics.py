"""Metrics: each definition on a schedule computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from optimizer.problem import Engine, Metrics, Requests, StepTime
from optimizer.problem.kv_use import kv_tokens_by_run, kv_use
from tests.problem.hand import ENGINE, REQUESTS, by_hand, schedule

NAN = math.nan


@pytest.fixture
def metrics() -> Metrics:
    """The schedule by hand at levels of 4 s to the first token and 1.2 s per token."""
    return Metrics.of(by_hand(), REQUESTS, ENGINE, ttft_slo_s=4.0, tpot_slo_s=1.2)


def test_latencies_by_request(metrics):
    """From the arrival; one output token has no time per output token, the unfinished have none of all."""
    np.testing.assert_array_equal(metrics.ttft_s, [1.0, 4.0, 6.5, NAN])
    np.testing.assert_array_equal(metrics.e2e_s, [5.0, 4.0, 9.5, NAN])
    np.testing.assert_array_equal(metrics.tpot_s, [1.0, NAN, 1.5, NAN])
    assert metrics.preemptions.tolist() == [0, 0, 1, 0]


def test_totals(metrics):
    """The makespan counts from time 0, the span from the first arrival."""
    assert (metrics.makespan_s, metrics.span_s, metrics.steps) == (12.0, 11.0, 8)


def test_the_summary(metrics):
    """Rates over the span, of what is finished; percentiles interpolate between neighbours."""
    s = metrics.summary()
    assert (s["requests"], s["finished"], s["preemptions"], s["steps"]) == (4, 3, 1, 8)
    expected = {
        "makespan_s": 12.0,
        "requests_per_s": 3 / 11,
        "output_tokens_per_s": (5 + 1 + 3) / 11,
        "goodput_per_s": 2 / 11,
        "slo_attainment": 2 / 4,
        "ttft_mean_s": 11.5 / 3,
        "ttft_p50_s": 4.0,
        "ttft_p99_s": 4.0 + 0.98 * 2.5,
        "tpot_mean_s": 1.25,
        "tpot_p50_s": 1.25,
        "tpot_p99_s": 1.0 + 0.99 * 0.5,
        "e2e_mean_s": 18.5 / 3,
        "e2e_p50_s": 5.0,
        "e2e_p99_s": 5.0 + 0.98 * 4.5,
    }
    assert {name: s[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("own", "met"),
    [
        ({}, [True, True, False, False]),
        ({"ttft_slo_s": [NAN, 3.9, 6.5, 99.0]}, [True, False, False, False]),
        (
            {"ttft_slo_s": [1.0, 4.0, 6.5, 99.0], "tpot_slo_s": [NAN, NAN, 1.5, 9.0]},
            [True, True, True, False],
        ),
        ({"tpot_slo_s": [0.99, 0.0, 1.5, NAN]}, [False, True, False, False]),
    ],
    ids=["defaults", "own TTFT", "both", "own TPOT"],
)
def test_goodput_needs_both_levels(own, met):
    """A request's own level wins over the default; one token has no TPOT to miss; the unfinished meet nothing."""
    columns = {"arrival_s": REQUESTS.arrival_s, "prompt_tokens": [6, 4, 5, 9], "output_tokens": [5, 1, 3, 2]}
    requests = Requests.from_columns(columns | own)
    measured = Metrics.of(by_hand(), requests, ENGINE, ttft_slo_s=4.0, tpot_slo_s=1.2)
    assert measured.met_slo.tolist() == met
    assert measured.summary()["goodput_per_s"] == pytest.approx(sum(met) / 11)


def test_the_default_levels_are_distserves():
    """0.2 s to the first token and 0.1 s per token: here nobody is that fast."""
    assert not Metrics.of(by_hand(), REQUESTS, ENGINE).met_slo.any()
    quick = schedule(first_token_s=[0.2], finish_s=[0.3])
    one = Requests.from_columns({"prompt_tokens": [1], "output_tokens": [2]})
    assert Metrics.of(quick, one, ENGINE).met_slo.all()


@pytest.mark.parametrize(("late", "met"), [(1e-10, True), (1e-8, False)])
def test_a_level_is_met_to_the_nanosecond(late, met):
    """The last bit of a float decides nothing, ten nanoseconds do."""
    made = schedule(first_token_s=[4.0 + late], finish_s=[5.2 + 2 * late])
    one = Requests.from_columns({"prompt_tokens": [1], "output_tokens": [2]})
    assert Metrics.of(made, one, ENGINE, ttft_slo_s=4.0, tpot_slo_s=1.2).met_slo.tolist() == [met]


def test_where_nothing_is_finished_no_number_is_made_up():
    """None, not 0 and not infinity."""
    one = Requests.from_columns({"prompt_tokens": [1], "output_tokens": [2]})
    s = Metrics.of(schedule(first_token_s=[NAN], finish_s=[NAN]), one, ENGINE).summary()
    numbers = {"requests": 1, "finished": 0, "slo_attainment": 0.0, "preemptions": 0, "steps": 0}
    assert s == dict.fromkeys(s) | numbers


def test_a_run_of_no_length_has_no_rates():
    """All at once: tokens per second would be infinite."""
    one = Requests.from_columns({"prompt_tokens": [1], "output_tokens": [1]})
    s = Metrics.of(schedule(first_token_s=[0.0], finish_s=[0.0]), one, ENGINE).summary()
    assert (s["makespan_s"], s["requests_per_s"], s["output_tokens_per_s"]) == (0.0, None, None)


def test_columns_and_frame(metrics):
    """One row per request, under the same names."""
    columns = metrics.columns()
    assert list(columns)[:3] == ["arrival_s", "prompt_tokens", "output_tokens"]
    assert {len(column) for column in columns.values()} == {4}
    frame = pytest.importorskip("pandas") and metrics.to_frame()
    assert list(frame.columns) == list(columns)
    assert frame["finish_s"].max() == 12.0


def test_kv_use_by_hand(metrics):
    """Blocks of 4, of which there are 10: those of every step weigh by its time.

    Run 0 (1 s): 2 blocks. Run 1 (0.5, 1 and 1.5 s): 7, 8 and 9 tokens, 2, 2 and 3 blocks. Run 2 (1 s): 10 and
    4 tokens, 4. Runs 3 (2 s), 4 (1 s) and 5 (2 s): 5, 6 and 7 tokens, 2 each.
    """
    last, mean = kv_tokens_by_run(by_hand())
    assert last.tolist() == [8, 12, 16, 8, 8, 8]
    assert mean.tolist() == pytest.approx([8, 10, 16, 8, 8, 8])
    assert metrics.kv_use_peak == pytest.approx(4 / 10)
    in_run_1 = 2 * 0.5 + 2 * 1 + 3 * 1.5
    assert metrics.kv_use_mean == pytest.approx((2 * 1 + in_run_1 + 4 * 1 + 2 * 2 + 2 * 1 + 2 * 2) / 10 / 10)


def test_kv_of_reservations_is_what_was_reserved():
    """Used or not, from the first run of the reservation to its last."""
    held = schedule(
        start_s=[0, 1, 3], end_s=[1, 3, 4], first_step_s=[1, 1, 1], steps=[1, 2, 1],
        decode_seqs=[0, 0, 0], decode_context=[0, 0, 0], prefill_tokens=[1, 1, 1],
        hold_request=[0, 1], hold_first_run=[0, 1], hold_last_run=[1, 2], hold_offset=[0, 20], hold_tokens=[20, 12],
    )  # fmt: skip
    assert kv_tokens_by_run(held)[0].tolist() == [20, 32, 12]
    assert kv_use(held, REQUESTS, ENGINE) == pytest.approx(((20 * 1 + 32 * 2 + 12 * 1) / 4 / 40, 32 / 40))


def test_kv_waits_with_its_request_between_chunks():
    """Two chunks of one prompt with a run of somebody else's in between: its blocks are held all the time."""
    waiting = schedule(
        start_s=[0, 1, 2], end_s=[1, 2, 3], first_step_s=[1, 1, 1], steps=[1, 1, 1], decode_seqs=[0, 0, 0],
        decode_context=[0, 0, 0], prefill_tokens=[5, 4, 3], chunk_run=[0, 1, 2], chunk_request=[0, 1, 0],
        chunk_tokens=[5, 4, 3], chunk_context=[0, 0, 5],
    )  # fmt: skip
    assert kv_tokens_by_run(waiting)[0].tolist() == [8, 12, 8]


def test_who_was_thrown_out_holds_nothing_until_it_comes_back():
    """Preempted before run 1, computed anew in run 2; in between only the other one holds a block."""
    thrown_out = schedule(
        start_s=[0, 1, 2], end_s=[1, 2, 3], first_step_s=[1, 1, 1], steps=[1, 1, 1], decode_seqs=[0, 0, 0],
        decode_context=[0, 0, 0], prefill_tokens=[5, 4, 6], chunk_run=[0, 1, 2], chunk_request=[0, 1, 0],
        chunk_tokens=[5, 4, 6], chunk_context=[0, 0, 0], preempt_run=[1], preempt_request=[0],
    )  # fmt: skip
    assert kv_tokens_by_run(thrown_out)[0].tolist() == [8, 4, 8]


def test_kv_of_a_chunk_that_is_repeated_grows_within_its_run():
    """Three steps of 3 tokens: 3, 6 and 9 tokens are 1, 2 and 3 blocks, of 1 s each, or of 1, 2 and 3 s."""
    for end_s, blocks in ((3, 2), (6, (1 * 1 + 2 * 2 + 3 * 3) / 6)):
        repeated = schedule(
            start_s=[0], end_s=[end_s], first_step_s=[1], steps=[3], decode_seqs=[0], decode_context=[0],
            prefill_tokens=[3], chunk_run=[0], chunk_request=[0], chunk_tokens=[3], chunk_context=[0],
        )  # fmt: skip
        last, mean = kv_tokens_by_run(repeated)
        assert last.tolist() == [12]
        assert mean.tolist() == pytest.approx([4 * blocks])


def test_kv_use_of_a_very_long_run():
    """A hundred million tokens in one run: blocks times steps squared are no 64-bit integer any more."""
    steps = 10**8
    decoding = schedule(
        start_s=[0, 1], end_s=[1, 1 + steps * (steps + 1) / 2], first_step_s=[1, 1], steps=[1, steps],
        decode_seqs=[0, 1], decode_context=[0, 2], prefill_tokens=[1, 0],
        chunk_run=[0], chunk_request=[0], chunk_tokens=[1], chunk_context=[0],
        decode_request=[0], decode_first_run=[1], decode_last_run=[1],
    )  # fmt: skip
    last, mean = kv_tokens_by_run(decoding)
    assert last.tolist() == [4, steps + 4]
    # Steps of 1, 2, 3, ... s weigh the context, which grows as they do, to two thirds of where it ends.
    assert mean.tolist() == pytest.approx([4, 2 / 3 * steps], rel=1e-6)


def test_kv_use_of_nothing_is_unknown():
    """No runs, no number; a run in which nobody holds anything holds nothing."""
    empty = schedule(
        start_s=[0],
        end_s=[1],
        first_step_s=[1],
        steps=[1],
        decode_seqs=[0],
        decode_context=[0],
        prefill_tokens=[0],
    )
    assert kv_tokens_by_run(empty)[0].tolist() == [0]
    one = Requests.from_columns({"prompt_tokens": [1], "output_tokens": [1]})
    toy = Engine(name="toy", kv_blocks=1, step_time=StepTime.affine(base_s=1.0))
    assert all(math.isnan(share) for share in kv_use(schedule(), one, toy))

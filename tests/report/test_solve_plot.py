from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.offline import solve
from optimizer.problem import Engine, Instance, Requests, StepTime
from optimizer.report.plot import save
from optimizer.report.solve_plot import MOST_LANES, _held_blocks, lanes, plot_result
from optimizer.report.timeline import Episodes

STEP = StepTime.affine(
    base_s=0.005, per_prefill_token_s=1e-5, per_decode_seq_s=2e-5, per_decode_context_s=1e-8
)


def batch(n: int, seats: int, blocks: int) -> Instance:
    """Requests of many lengths, all at once."""
    columns = {
        "prompt_tokens": [10 + 37 * i % 110 for i in range(n)],
        "output_tokens": [5 + 83 * i % 195 for i in range(n)],
    }
    engine = Engine(
        name="toy", kv_blocks=blocks, max_num_batched_tokens=256, max_num_seqs=seats, step_time=STEP
    )
    return Instance("batch", Requests.from_columns(columns), engine, "makespan")


@pytest.fixture(scope="module")
def few_seats():
    return solve(batch(30, 6, 60), time_limit_s=1)


@pytest.fixture(scope="module")
def many_seats():
    return solve(batch(120, 100, 4000), time_limit_s=1)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=12))
def test_lanes_are_as_few_as_can_be_and_nobody_shares_one(spans):
    start = np.array([float(a) for a, _ in spans])
    end = start + np.array([float(b) for _, b in spans])
    n = len(spans)
    found = lanes(Episodes(np.arange(n), start, start, start, end, np.zeros(n, np.bool_)))
    for i, j in combinations(range(n), 2):
        assert found[i] != found[j] or end[i] <= start[j] or end[j] <= start[i]
    at_once = [int(((start <= moment) & (moment < end)).sum()) for moment in start]
    assert set(found.tolist()) == set(range(max(at_once, default=0)))


def test_who_never_came_on_has_no_lane():
    start = np.array([np.nan, 0.0])
    stays = Episodes(np.arange(2), np.zeros(2), start, start, np.array([np.nan, 1.0]), np.zeros(2, np.bool_))
    assert lanes(stays).tolist() == [-1, 0]


def test_few_seats_are_drawn_with_their_requests(few_seats):
    figure = plot_result(few_seats)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == [
        "Batch\n(tokens per step)",
        "Requests",
        "KV cache held\n(blocks)",
        "Seat",
        "Makespan (s)",
    ]
    assert figure.axes[3].get_xlabel() == "Time on the engine (s)"
    assert figure.axes[4].get_xlabel() == "Time of the solve (s)"
    bars = figure.axes[3].containers
    stays = Episodes.of(few_seats.simulation.schedule, few_seats.instance.requests)
    assert [len(container) for container in bars] == [
        len(stays.request),
        int((~np.isnan(stays.decode_s)).sum()),
    ]
    seconds = sum(bar.get_width() for container in bars for bar in container)
    assert seconds == pytest.approx(np.nansum(stays.left_s - stays.admitted_s))
    assert {round(bar.get_y() + 0.43) for bar in bars[0]} == set(range(6))
    assert figure.axes[2].get_legend().get_texts()[0].get_text() == "capacity: 60 blocks"


def test_many_seats_are_not(many_seats):
    stays = Episodes.of(many_seats.simulation.schedule, many_seats.instance.requests)
    assert lanes(stays).max() >= MOST_LANES
    assert "Seat" not in [axes.get_ylabel() for axes in plot_result(many_seats).axes]


def test_the_title_says_value_bound_and_gap(few_seats):
    title = plot_result(few_seats).get_suptitle()
    assert title.startswith("batch on toy: 30 requests\nmakespan ")
    assert f"gap {100 * few_seats.gap:.2f} %, found by {few_seats.found_by}" in title


def test_progress_is_drawn_as_it_was(few_seats):
    axes = plot_result(few_seats).axes[-1]
    lines = {line.get_label(): line for line in axes.lines}
    values = [p.primal for p in few_seats.progress]
    assert lines["best schedule"].get_ydata().tolist() == [*values, values[-1]]
    assert lines["best schedule"].get_xdata()[-1] == few_seats.seconds
    bound = lines["bound"].get_ydata()
    assert bound[-1] == few_seats.progress[-1].dual
    assert np.isnan(bound[0]), "the first policy comes before any bound"
    assert lines[f"best policy: {few_seats.heuristic_policy}"].get_ydata()[0] == few_seats.heuristic


def test_the_cache_is_drawn_as_full_as_it_was(few_seats):
    s = few_seats.simulation
    held = _held_blocks(s.schedule, np.linspace(0, s.schedule.makespan_s, 301))
    blocks = few_seats.instance.engine.kv_blocks
    assert held.max() <= blocks * s.metrics.kv_use_peak + 1e-9
    assert held.mean() == pytest.approx(blocks * s.metrics.kv_use_mean, rel=0.01)


@pytest.mark.parametrize("objective", ["goodput", "mean-latency,makespan", "ttft", "weighted-latency"])
def test_every_objective_has_a_picture(objective, tmp_path):
    result = solve(batch(5, 2, 60), objective=objective, time_limit_s=0.2)
    figure = plot_result(result)
    named = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    for text in (figure.get_suptitle(), " ".join(named)):
        assert ("bound" in text) is ("gap" in text) is (objective != "goodput")
    figure.canvas.draw()
    lowest = min(axes.get_tightbbox().y0 for axes in figure.axes)
    assert 0 <= lowest < 20, "the panels fill the picture"
    for ending in ("png", "svg"):
        save(figure, tmp_path / f"p.{ending}")
        assert (tmp_path / f"p.{ending}").stat().st_size > 5000


def test_nothing_overlaps(few_seats):
    figure = plot_result(few_seats)
    figure.canvas.draw()
    for axes in figure.axes:
        for axis, side in ((axes.xaxis, ("x0", "x1")), (axes.yaxis, ("y0", "y1"))):
            low, high = sorted(axis.get_view_interval())
            shown = [t for t in axis.get_ticklabels() if t.get_text() and t.get_visible()]
            spans = sorted(
                tuple(getattr(t.get_window_extent(), name) for name in side)
                for t, at in zip(shown, axis.get_ticklocs(), strict=False)
                if low <= at <= high
            )
            assert all(a[1] < b[0] for a, b in pairwise(spans))
    boxes = [a.get_legend().get_window_extent() for a in figure.axes]
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    for legend, above in zip(boxes[1:], figure.axes, strict=False):
        assert not legend.overlaps(above.get_tightbbox()), "it stands between its own panel and the one above"

from __future__ import annotations

import csv
import json
import sys
from itertools import pairwise

import numpy as np
import pytest

from optimizer.errors import InputError
from optimizer.report.plot import need_matplotlib, plot_latencies, plot_schedule, save
from optimizer.report.requests_csv import write_requests_csv
from optimizer.report.summary import peak_memory_mb, summarize


def test_requests_csv_has_a_row_per_request(by_hand, tmp_path):
    path = tmp_path / "r.csv"
    write_requests_csv(path, by_hand.metrics, by_hand.instance.requests)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert [row["tenant"] for row in rows] == ["x", "y", "x"]
    assert rows[1]["tpot_s"] == ""
    assert float(rows[0]["ttft_s"]) == pytest.approx(0.02)
    assert {row["met_slo"] for row in rows} == {"1"}


def test_summary_is_json_and_its_quantiles_are_the_latencies(under_pressure):
    summary = summarize(under_pressure)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    e2e = under_pressure.metrics.e2e_s
    assert summary["quantiles"]["e2e"][0] == e2e.min()
    assert summary["quantiles"]["e2e"][50] == pytest.approx(np.median(e2e))
    assert summary["quantiles"]["e2e"][100] == e2e.max()
    assert summary["requests_per_second_simulated"] == pytest.approx(400 / summary["loop_seconds"])


def test_memory_is_counted_in_megabytes(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrusage", lambda who: type("Usage", (), {"ru_maxrss": 150_000_000})())
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_memory_mb() == 150
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_memory_mb() == 150 * 1024


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_pictures_are_drawn_and_labelled_with_units(under_pressure, tmp_path, ending):
    s = under_pressure
    figure = plot_schedule(s.schedule, s.instance.requests, s.instance.engine)
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels == ["Batch\n(tokens per step)", "Requests", "KV cache used (%)"]
    assert figure.axes[-1].get_xlabel() == "Time (s)"
    save(figure, tmp_path / f"p.{ending}")
    assert (tmp_path / f"p.{ending}").stat().st_size > 5000


def test_latencies_of_many_policies_have_a_row_each(under_pressure):
    quantiles = summarize(under_pressure)["quantiles"]
    names = [f"policy {i}" for i in range(23)]
    figure = plot_latencies(dict.fromkeys(names, quantiles))
    assert [axes.get_xlabel()[-4:].strip() for axes in figure.axes] == ["(s)", "(ms)", "(s)"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == names
    medians = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert len(medians) == 23
    assert medians[0].get_xdata()[0] == pytest.approx(1e3 * quantiles["tpot"][50])
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["5 to 95 %", "25 to 75 %", "median", "99 %"]


@pytest.mark.parametrize("factor", [1.2, 4, 30, 1e5])
def test_labels_of_latencies_are_plain_and_do_not_overlap(factor):
    values = {key: [0.01, 0.01 * factor] for key in ("ttft", "tpot", "e2e")}
    figure = plot_latencies({"x": values})
    figure.canvas.draw()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        labels = [t for t in axes.get_xticklabels() if t.get_text() and low <= t.get_position()[0] <= high]
        assert 2 <= len(labels) <= 10
        assert not any("$" in label.get_text() for label in labels)
        boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
        assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_latencies_without_values_are_drawn_empty():
    assert plot_latencies({"x": {"ttft": [0.1, 0.2], "tpot": [], "e2e": [0.1, 0.3]}}).axes


def test_without_matplotlib_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install"):
        need_matplotlib()

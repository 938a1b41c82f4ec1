"""What a validation writes besides its figures: a row per request, and a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optimizer.problem.files import written_whole
from optimizer.report.plot import need_matplotlib
from optimizer.validation.compare import RunComparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#666666")
"""Okabe and Ito's: told apart by everybody."""
_LEAST_S = 1e-4
"""Of a latency on a logarithmic axis."""


def write_requests(path: str | Path, run: RunComparison) -> None:
    """Write one row per request: lengths, when it was sent, and its times, measured and simulated, in seconds."""
    m, s = run.measured, run.simulation.metrics
    columns = {
        "sent_s": m.requests.arrival_s,
        "prompt_tokens": m.requests.prompt_tokens,
        "output_tokens": m.requests.output_tokens,
        "first_token_s": m.first_token_s,
        "first_token_simulated_s": s.first_token_s,
        "finished_s": m.finish_s,
        "finished_simulated_s": s.finish_s,
        "preemptions_simulated": s.preemptions,
    }
    with written_whole(path) as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(columns)
        rows.writerows(zip(*(np.round(c, 9).tolist() for c in columns.values()), strict=True))


def plot_latencies(runs: Sequence[RunComparison]) -> Figure:
    """Draw simulated against measured TTFT and end-to-end latency, percentile by percentile, a line per run.

    On the diagonal the distributions are equal.

    Raises
    ------
    InputError
        If matplotlib is not installed.
    """
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    shares = np.linspace(0, 1, 101)
    for axes, first, title in zip(
        figure.subplots(1, 2),
        (True, False),
        ("Time to first token (s)", "End-to-end latency (s)"),
        strict=True,
    ):
        ends = []
        for number, run in enumerate(runs):
            m, s = run.measured, run.simulation.metrics
            real = (m.first_token_s if first else m.finish_s) - m.requests.arrival_s
            x, y = (
                np.maximum(np.quantile(values, shares), _LEAST_S)
                for values in (real, s.ttft_s if first else s.e2e_s)
            )
            ends += [x, y]
            axes.plot(x, y, color=_COLOURS[number % len(_COLOURS)], lw=1.6, label=run.run)
        low, high = float(np.min(ends)) / 1.3, float(np.max(ends)) * 1.3
        axes.plot((low, high), (low, high), color="#666666", lw=0.8, ls="--", label="equal", zorder=0)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), title=title, aspect="equal",
                 xlabel="measured", ylabel="simulated")  # fmt: skip
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", lw=0.6)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure

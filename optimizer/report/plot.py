"""Pictures: what an engine did over time, and how latencies of policies are distributed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.errors import InputError
from optimizer.problem import Engine, Requests, Schedule
from optimizer.problem.files import written_whole
from optimizer.report.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart by everybody.
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
_WINDOWS = 300
"""Time windows across a picture; what is finer is averaged."""
_LATENCIES = (
    ("ttft", "Time to first token (s)", 1.0),
    ("tpot", "Time per output token (ms)", 1e3),
    ("e2e", "End-to-end latency (s)", 1.0),
)
_RANGES = (((5, 95), 1.4, "5 to 95 %"), ((25, 75), 4.5, "25 to 75 %"))
"""Quantiles in per cent that a line reaches over, its width, and its name in the legend."""
PICTURES = ("png", "pdf", "svg")


def plot_schedule(schedule: Schedule, requests: Requests, engine: Engine, *, title: str = "") -> Figure:
    """Draw the batch, the queue and the use of the KV cache over time.

    Each value is an average over a window of 1/300 of the makespan; idle time counts as 0.

    Raises
    ------
    InputError
        If matplotlib is not installed.
    """
    t = Timeline.of(schedule, requests, engine)
    edges = np.linspace(0.0, float(t.end_s[-1]), _WINDOWS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    figure = _figure((9.0, 6.5))
    batch, queue, cache = figure.subplots(3, 1, sharex=True)
    decode, prefill = t.averages(t.decode_tokens, edges), t.averages(t.prefill_tokens, edges)
    # A prefill computes a hundred times what a decode step does: only a logarithm shows both.
    for tokens, colour, name in ((prefill, _ORANGE, "prefill"), (decode, _BLUE, "decode")):
        batch.plot(middle, np.where(tokens > 0, tokens, np.nan), color=colour, lw=1.2, label=name)
    if schedule.max_num_batched_tokens is not None:
        batch.axhline(schedule.max_num_batched_tokens, color=_GREY, lw=0.8, ls="--", label="budget")
    batch.set(ylabel="Batch\n(tokens per step)", yscale="log")
    _plain_numbers(batch.yaxis)
    queue.plot(middle, t.averages(t.running, edges), color=_GREEN, lw=1.2, label="running")
    queue.plot(middle, t.averages(t.waiting, edges), color=_RED, lw=1.2, label="waiting")
    queue.set_ylabel("Requests")
    cache.fill_between(middle, 100 * t.averages(t.kv_share, edges), color=_BLUE, alpha=0.35, lw=0)
    top = min(100.0, 1.2 * 100 * float(t.kv_share.max()))
    cache.set(ylabel="KV cache used (%)", ylim=(0, top), xlabel="Time (s)", xlim=(0.0, edges[-1]))
    when = schedule.start_s[schedule.preempt_run]
    if when.size:
        cache.plot(
            when, np.full(when.size, top), "|", color=_RED, ms=6, mew=0.7, label="preemption", clip_on=False
        )
        _legend(cache)
    queue.set_ylim(bottom=0)
    _legend(batch)
    _legend(queue)
    _tidy((batch, queue, cache))
    figure.suptitle(title or f"{schedule.policy} on {engine.name}", x=0.01, ha="left")
    return figure


def plot_latencies(quantiles: Mapping[str, Mapping[str, Sequence[float]]], *, title: str = "") -> Figure:
    """Draw how TTFT, TPOT and end-to-end latency are distributed, a row per policy.

    Parameters
    ----------
    quantiles
        By policy, by `ttft`, `tpot` and `e2e`: quantiles in seconds, evenly spaced from 0 to 1.
    title
        Above the picture.

    Raises
    ------
    InputError
        If matplotlib is not installed.
    """
    rows = len(quantiles)
    figure = _figure((12.0, 1.6 + 0.23 * rows))
    panels = figure.subplots(1, 3, sharey=True)
    for axes, (key, label, scale) in zip(panels, _LATENCIES, strict=True):
        for row, values in enumerate(quantiles.values()):
            if levels := values.get(key):
                _distribution(axes, row, np.maximum(levels, 1e-6) * scale, named=row == 0)
        axes.set(xscale="log", xlabel=label)
        _plain_numbers(axes.xaxis)
    panels[0].set(yticks=range(rows), yticklabels=list(quantiles), ylim=(rows - 0.4, -0.6))
    _tidy(panels, grid="both")
    for axes in panels:
        axes.tick_params(axis="y", length=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def _distribution(axes: Any, row: int, levels: Any, *, named: bool) -> None:
    share = np.linspace(0, 100, len(levels))
    for (low, high), width, name in _RANGES:
        ends = np.interp((low, high), share, levels)
        axes.plot(
            ends, (row, row), color=_BLUE, lw=width, solid_capstyle="butt", label=name if named else None
        )
    for at, mark, colour, name in ((50, "o", "white", "median"), (99, "|", _RED, "99 %")):
        style = (
            {"mfc": colour, "mec": _BLUE, "ms": 4} if mark == "o" else {"mec": colour, "ms": 8, "mew": 1.8}
        )
        axes.plot(np.interp(at, share, levels), row, mark, ls="", label=name if named else None, **style)


def save(figure: Figure, path: str | Path) -> None:
    """Write a picture, whole or not at all; its kind follows from the name.

    Raises
    ------
    InputError
        If the name ends in none of .png, .pdf, .svg.
    """
    kind = picture_kind(path)
    with written_whole(path, "wb") as out:
        figure.savefig(out, format=kind, dpi=150)


def picture_kind(path: str | Path) -> str:
    """Give the kind of picture that a file name asks for."""
    kind = Path(path).suffix.lstrip(".").lower()
    if kind not in PICTURES:
        raise InputError(f"{kind or 'no ending'!r} is no kind of picture; expected one of {', '.join(PICTURES)}",
                         file=str(path))  # fmt: skip
    return kind


def need_matplotlib() -> None:
    """Raise where it is not installed: before a long simulation, not after it."""
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise InputError("plots need matplotlib: pip install 'llm-schedule-optimizer[analysis]'")


def _figure(inches: tuple[float, float]) -> Figure:
    need_matplotlib()
    # No pyplot: it keeps figures alive, and picks a window system that a server does not have.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _legend(axes: Any) -> None:
    """Above the panel, where it hides nothing."""
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=3, frameon=False, borderaxespad=0.1)


def _plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis with 0.01, 1, 100; where it spans little, with 2 and 5 too, or evenly."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    subs = (1.0,) if decades > 3 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=9) if decades > 0.8 else MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _tidy(panels: Sequence[Any], grid: str = "y") -> None:
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis=grid, color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)

"""Pictures of a calibration: predicted against measured step times, and the error by size.

`python -m optimizer.report.calibration_plot FILE` draws the three measured H200 cards.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.capacity.judge import Judged, judge
from optimizer.capacity.steplog import WORK, Floats
from optimizer.errors import InputError
from optimizer.report.plot import _BLUE, _GREEN, _GREY, _ORANGE, _figure, _plain_numbers, _tidy, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BAND = 0.1
"""The shaded band: within 10 %."""
_MOST_SHOWN = 40.0
"""Errors in per cent beyond which points are drawn at the edge."""
_BINS_PER_DECADE, _LEAST_POINTS = 4, 6
"""Of the line of medians."""
_STYLES = {"decode": (_BLUE, "o", "decode only"), "mixed": (_ORANGE, "s", "prefill and decode"),
           "prefill": (_GREEN, "^", "prefill only")}  # fmt: skip
_SIZES = {
    "tokens": "Scheduled tokens",
    "decode_seqs": "Requests decoding",
    "decode_context": "Their context (tokens)",
}


def plot_calibration(judged: Judged, *, title: str = "") -> Figure:
    """Draw predicted against measured times, and the error by tokens, decoding requests and context.

    Raises
    ------
    InputError
        If matplotlib is not installed.
    """
    figure = _figure((10.0, 8.0))
    panels = figure.subplots(2, 2)
    _times(panels[0, 0], judged)
    for axes, size in zip(panels.flat[1:], _SIZES, strict=True):
        _residuals(axes, judged, size)
    _finish(figure, panels, title)
    return figure


def plot_cards(judged: Mapping[str, Judged], *, title: str = "") -> Figure:
    """Draw several calibrations side by side: predicted against measured times, the error by tokens below.

    Parameters
    ----------
    judged
        By name.
    title
        Above the picture.

    Raises
    ------
    InputError
        If matplotlib is not installed.
    """
    figure = _figure((4.2 * len(judged), 8.0))
    panels = figure.subplots(2, len(judged), squeeze=False)
    for (above, below), (name, one) in zip(panels.T, judged.items(), strict=True):
        _times(above, one)
        above.set_title(name, loc="left", fontsize=10)
        _residuals(below, one, "tokens")
    for axes in panels[:, 1:].flat:
        axes.set_ylabel("")
    # One scale for all: a panel with a range of its own would hide who is slow.
    ends = [end for axes in panels[0] for end in axes.get_xlim()]
    for axes in panels[0]:
        axes.set(xlim=(min(ends), max(ends)), ylim=(min(ends), max(ends)))
        _plain_numbers(axes.xaxis)
        _plain_numbers(axes.yaxis)
    _finish(figure, panels, title)
    return figure


def _times(axes: Any, judged: Judged) -> None:
    measured, predicted = 1e3 * judged.measured_s, 1e3 * judged.predicted_s
    both = np.concatenate([measured, predicted])
    ends = np.array([both.min() / 1.25, both.max() * 1.25])
    # Beyond the panel, so that a common scale with others finds no end of them within.
    far = np.array([1e-3, 1e9])
    band = axes.fill_between(far, far * (1 - _BAND), far * (1 + _BAND), color=_GREY, alpha=0.18, lw=0)
    band.set_label(f"within {100 * _BAND:.0f} %")
    axes.plot(far, far, color=_GREY, lw=0.8)
    _points(axes, judged, measured, predicted)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=ends,
        ylim=ends,
        aspect="equal",
        xlabel="Measured (ms)",
        ylabel="Predicted (ms)",
    )
    for axis in (axes.xaxis, axes.yaxis):
        _plain_numbers(axis)
    of = judged.by_phase()["all"]
    text = (
        f"{of.steps:,} points\nmedian error {100 * of.median:.1f} %\n"
        f"mean {100 * of.mean:.1f} %, sum {100 * of.total:+.1f} %"
    )
    axes.text(0.04, 0.96, text, transform=axes.transAxes, va="top", fontsize=9)


def _residuals(axes: Any, judged: Judged, size: str) -> None:
    amount = _amount(judged, size)
    error = 100 * (judged.predicted_s / judged.measured_s - 1)
    shown = amount > 0
    axes.axhspan(-100 * _BAND, 100 * _BAND, color=_GREY, alpha=0.18, lw=0)
    axes.axhline(0, color=_GREY, lw=0.8)
    _points(axes, judged, amount, np.clip(error, -_MOST_SHOWN, _MOST_SHOWN), shown)
    if shown.any():
        axes.plot(*_medians(amount[shown], error[shown]), color="black", lw=1.6, label="median by size")
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
    axes.set(
        xlabel=_SIZES[size],
        ylabel="Predicted less measured (%)",
        ylim=(-_MOST_SHOWN * 1.05, _MOST_SHOWN * 1.05),
    )


def _points(axes: Any, judged: Judged, x: Floats, y: Floats, shown: NDArray[np.bool_] | None = None) -> None:
    for phase, (colour, mark, label) in _STYLES.items():
        rows = judged.phase == phase
        rows = rows if shown is None else rows & shown
        # A legend over all panels takes each name once; a phase without points has none.
        if rows.any():
            axes.plot(
                x[rows], y[rows], mark, color=colour, ms=3.2, mew=0, alpha=0.55, label=label, clip_on=False
            )


def _medians(amount: Floats, error: Floats) -> tuple[Floats, Floats]:
    """Give the median error in bins of size, wherever there are a few points."""
    bins = np.floor(_BINS_PER_DECADE * np.log10(amount))
    found = [(np.median(amount[rows]), np.median(error[rows])) for k in np.unique(bins)
             if (rows := bins == k).sum() >= _LEAST_POINTS]  # fmt: skip
    sizes, middles = np.array(found).reshape(-1, 2).T
    return sizes, middles


def _amount(judged: Judged, size: str) -> Floats:
    if size == "tokens":
        return np.asarray(judged.work[:, 0] + judged.work[:, WORK.index("decode_seqs")])
    return np.asarray(judged.work[:, WORK.index(size)])


def _finish(figure: Figure, panels: Any, title: str) -> None:
    _tidy(list(panels.flat), grid="both")
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
        markerscale=1.6,
    )
    figure.suptitle(title, x=0.01, ha="left")


def judged_h200() -> dict[str, Judged]:
    """Give the three measured H200 cards beside what they were fitted to: held-out steps, or totals of a run."""
    from optimizer.capacity import engine_card
    from optimizer.capacity.calibrate import calibrate
    from optimizer.capacity.refit import RUN_65B, SYNCHRONOUS, WINDOW
    from optimizer.capacity.steplog import read_step_log
    from optimizer.catalogue import catalogue_path

    folder = catalogue_path("models") / "measurements" / "h200"
    found = {
        f"{name}: held-out steps": calibrate(read_step_log(folder / file)).judged
        for name, file in SYNCHRONOUS.items()
    }
    model = engine_card("llama-65b-fp8@h200").step_time
    run = judge(model, read_step_log(folder / RUN_65B), WINDOW)
    return {**found, f"llama-65b-fp8@h200: totals of {WINDOW} steps, fitted": run}


def main(arguments: list[str]) -> None:
    """Draw the measured H200 cards."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m optimizer.report.calibration_plot FILE.png")
    save(
        plot_cards(judged_h200(), title="Step times on one H200, vLLM 0.26: model against measurement"),
        arguments[0],
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        raise SystemExit(str(error)) from None

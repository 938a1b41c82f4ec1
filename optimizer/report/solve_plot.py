"""The picture of a solved instance: what the engine does over time, who sits where, and how value and bound met."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optimizer.problem import Engine, Schedule
from optimizer.problem.columns import Floats, Ints
from optimizer.problem.kv_use import kv_tokens_by_run
from optimizer.report.plot import (
    _BLUE,
    _GREEN,
    _GREY,
    _ORANGE,
    _RED,
    _WINDOWS,
    _figure,
    _legend,
    _plain_numbers,
    _tidy,
)
from optimizer.report.timeline import Episodes, Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from optimizer.offline import Result

MOST_LANES = 60
"""Requests side by side that still have a lane of their own which can be seen."""
_MOST_NAMES = 40
"""Bars that are named; more names cannot be read."""
_PANEL_IN, _LANE_IN = 1.75, 0.105


def plot_result(result: Result) -> Figure:
    """Draw a result: batch, queue and KV cache over time, the requests on their seats, and the course of the solve.

    Values over time are averages over a window of 1/300 of the makespan; idle time counts as 0, but the size of a batch is
    that of the steps that compute prompts, or decode. Requests get lanes only where at most `MOST_LANES` run side by side.

    Raises
    ------
    InputError
        If matplotlib is not installed.
    """
    schedule, instance = result.simulation.schedule, result.instance
    stays = Episodes.of(schedule, instance.requests)
    lane = lanes(stays)
    heights = [1.0, 1.0, 1.0]
    if 0 < lane.max(initial=-1) + 1 <= MOST_LANES:
        heights.append(max(0.7, _LANE_IN * (int(lane.max()) + 4) / _PANEL_IN))
    heights.append(1.1)
    figure = _figure((9.0, 0.7 + _PANEL_IN * sum(heights)))
    *panels, course = figure.subplots(len(heights), 1, height_ratios=heights)
    for axes in panels[:-1]:
        axes.sharex(panels[-1])
        axes.tick_params(labelbottom=False)
    _state(panels[:3], Timeline.of(schedule, instance.requests, instance.engine), schedule, instance.engine)
    if len(panels) > 3:
        _gantt(panels[3], stays, lane, [instance.requests.name(i) for i in range(len(instance.requests))])
    panels[-1].set_xlabel("Time on the engine (s)")
    _course(course, result)
    _tidy((*panels, course))
    figure.suptitle(_title(result), x=0.01, ha="left")
    return figure


def lanes(stays: Episodes) -> Ints:
    """Give every stay of a request on the engine the first lane that is free, counted from 0; -1: it never came on.

    So many lanes are used as requests run side by side at most, which is the least that is possible (interval graphs).

    Examples
    --------
    >>> import numpy as np
    >>> nothing = np.zeros(3, np.bool_)
    >>> start, end = np.array([0.0, 1.0, 2.0]), np.array([2.0, 3.0, 4.0])
    >>> lanes(Episodes(np.arange(3), start, start, start, end, nothing)).tolist()
    [0, 1, 0]
    """
    import heapq

    found = np.full(len(stays.request), -1)
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    for stay in np.argsort(stays.admitted_s, kind="stable").tolist():  # those never admitted are last
        start = float(stays.admitted_s[stay])
        if np.isnan(start):
            break
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        mine = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (float(np.nan_to_num(stays.left_s[stay], nan=np.inf)), mine))
        found[stay] = mine
    return found.astype(np.int64)


def _state(panels: Any, t: Timeline, schedule: Schedule, engine: Engine) -> None:
    """Batch, queue and KV cache over time."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    batch, queue, cache = panels
    edges = np.linspace(0.0, float(t.end_s[-1]), _WINDOWS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    for tokens, colour, style, name in (
        # The dot shows a step that is alone in its window.
        (t.prefill_tokens, _ORANGE, ".-", "prompt tokens"),
        (t.decode_tokens, _BLUE, "-", "requests decoding"),
    ):
        busy = t.averages((tokens > 0).astype(np.int64), edges)
        size = np.where(busy > 0, t.averages(tokens, edges) / np.where(busy > 0, busy, 1), np.nan)
        batch.plot(middle, size, style, color=colour, lw=1.2, ms=2, label=name)
    # A prefill computes a hundred times what a decode step does: only a logarithm shows both.
    batch.set(ylabel="Batch\n(tokens per step)", yscale="log", xlim=(0.0, edges[-1]))
    _plain_numbers(batch.yaxis)
    queue.plot(middle, t.averages(t.running, edges), color=_GREEN, lw=1.2, label="running")
    queue.plot(middle, t.averages(t.waiting, edges), color=_RED, lw=1.2, ls="--", label="waiting")
    queue.set(ylabel="Requests")
    queue.set_ylim(bottom=0)
    cache.fill_between(middle, _held_blocks(schedule, edges), color=_BLUE, alpha=0.35, lw=0)
    cache.axhline(
        engine.kv_blocks, color=_GREY, lw=0.8, ls="--", label=f"capacity: {engine.kv_blocks:,} blocks"
    )
    top = 1.12 * engine.kv_blocks
    cache.set(ylabel="KV cache held\n(blocks)", ylim=(0, top))
    when = schedule.start_s[schedule.preempt_run]
    if when.size:
        cache.plot(
            when, np.full(when.size, top), "|", color=_RED, ms=6, mew=0.7, label="preemption", clip_on=False
        )
    for axes in (queue, cache):
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    for axes in panels:
        _legend(axes)


def _held_blocks(schedule: Schedule, edges: Floats) -> Floats:
    """Average over windows of the KV blocks held; within a run they grow in a straight line, all but."""
    samples = 10
    within = (np.arange(samples) + 0.5) / samples
    moments = (edges[:-1, None] + np.diff(edges)[:, None] * within).ravel()
    last, mean = kv_tokens_by_run(schedule)
    first = np.clip(2 * mean - last, 0, last)
    run = np.searchsorted(schedule.start_s, moments, side="right") - 1
    begun, ended = schedule.start_s[run], schedule.end_s[run]
    share = (moments - begun) / np.where(ended > begun, ended - begun, 1)
    tokens = np.where((run >= 0) & (moments < ended), first[run] + (last - first)[run] * share, 0.0)
    return np.asarray(tokens.reshape(-1, samples).mean(axis=1) / schedule.block_tokens)


def _gantt(axes: Any, stays: Episodes, lane: Ints, names: list[str]) -> None:
    """A bar for each stay of a request: its prompt, then its decodes."""
    from matplotlib.ticker import MaxNLocator

    on = lane >= 0
    decodes = on & ~np.isnan(stays.decode_s)
    # A prompt that was thrown out before its end never decoded.
    until = np.where(np.isnan(stays.decode_s), stays.left_s, stays.decode_s)
    for rows, start, end, colour, name in (
        (on, stays.admitted_s, until, _ORANGE, "prefill"),
        (decodes, stays.decode_s, stays.left_s, _BLUE, "decode"),
    ):
        axes.barh(
            lane[rows], (end - start)[rows], left=start[rows], height=0.86, color=colour, lw=0.4,
            edgecolor="white", label=name,
        )  # fmt: skip
    thrown = on & stays.preempted
    if thrown.any():
        axes.plot(stays.left_s[thrown], lane[thrown], "x", color=_RED, ms=4, mew=1.2, label="preempted")
    _name_bars(axes, stays, lane, names)
    axes.set(ylabel="Seat", ylim=(lane.max() + 0.6, -0.6))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, borderaxespad=0.1)


def _name_bars(axes: Any, stays: Episodes, lane: Ints, names: list[str]) -> None:
    if len(stays.request) > _MOST_NAMES:
        return
    # About 110 characters fit across; a name that does not fit into its bar would hide others.
    character_s = float(np.nanmax(stays.left_s)) / 110
    for stay in np.flatnonzero(lane >= 0).tolist():
        start, end = float(stays.admitted_s[stay]), float(stays.left_s[stay])
        decode = float(np.nan_to_num(stays.decode_s[stay], nan=end))
        name = names[stays.request[stay]]
        wide = decode - start > end - decode
        start, end = (start, decode) if wide else (decode, end)
        if (end - start) / character_s > len(name) + 1:
            colour = "black" if wide else "white"
            axes.text((start + end) / 2, lane[stay], name, ha="center", va="center", fontsize=7, color=colour)


def _course(axes: Any, result: Result) -> None:
    """Best value and best bound over the seconds of the solve."""
    steps = [p for p in result.progress if p.primal is not None or p.dual is not None]
    end = max([result.seconds, *(p.seconds for p in steps)])
    seconds = np.array([*(p.seconds for p in steps), end])

    def whole(values: list[float | None]) -> Floats:
        return np.array([np.nan if v is None else v for v in [*values, *values[-1:]]], dtype=np.float64)

    value, bound = whole([p.primal for p in steps]), whole([p.dual for p in steps])
    if not np.isnan(bound).all():
        both = ~np.isnan(value) & ~np.isnan(bound)
        axes.fill_between(
            seconds, bound, value, where=both, step="post", color=_GREY, alpha=0.15, lw=0, label="gap"
        )
    for course, colour, style, name in ((value, _BLUE, "-", "best schedule"), (bound, _RED, "--", "bound")):
        changed = np.append(True, course[1:] != course[:-1])[:-1] & ~np.isnan(course[:-1])
        # An empty line that is not clipped would stand at the corner of the picture, and take room there.
        if changed.any():
            axes.plot(seconds, course, color=colour, lw=1.6, drawstyle="steps-post", ls=style, label=name)
            axes.plot(seconds[:-1][changed], course[:-1][changed], "o", color=colour, ms=3, clip_on=False)
    axes.axhline(
        result.heuristic, color=_GREEN, lw=1.0, ls=":", label=f"best policy: {result.heuristic_policy}"
    )
    start = float(seconds[0])
    if end > 20 * start > 0:  # the first second matters as much as the last minute
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
    axes.set(xlim=(start, end), xlabel="Time of the solve (s)", ylabel=_AXIS[_first(result)])
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=4, frameon=False, borderaxespad=0.1)


_AXIS = {
    "makespan": "Makespan (s)",
    "mean-latency": "Mean latency (s)",
    "weighted-latency": "Weighted latency (s)",
    "ttft": "Mean time to\nfirst token (s)",
    "goodput": "Requests that miss\ntheir levels (share)",
}


def _first(result: Result) -> str:
    return result.objective.partition(",")[0]


def _title(result: Result) -> str:
    instance = result.instance
    if _first(result) == "goodput":
        said = f"{100 * result.primal:.3g} % of the requests miss their levels"
    else:
        said = f"{_first(result)} {_five_digits(result.primal)} s"
    if result.dual is not None and result.gap is not None:
        said += f", bound {_five_digits(result.dual)} s, gap {100 * result.gap:.2f} %"
    return f"{instance.name} on {instance.engine.name}: {len(instance.requests):,} requests\n{said}, found by {result.found_by}"


def _five_digits(value: float) -> str:
    return f"{value:,.5g}" if abs(value) < 1e5 else f"{value:,.0f}"

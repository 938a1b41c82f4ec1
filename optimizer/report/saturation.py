"""Was the engine saturated, how far was it from it, and what was scarce. All definitions are here.

**Held back.** A request is held back while a step starts without it that could have had it: it had arrived (or was
preempted) before. Waiting for the running step to end is no such thing, and goes on at every load. With
asynchronous scheduling a step knows of what arrived before the one ahead of it started, so one step more is free; and
seats and blocks of requests that finish with a step are taken during the next one.

**Saturated.** Requests arrive faster than the engine serves them, so that the queue grows as long as they
arrive. Over the span from the first arrival to the last, all three must hold:

1. it grew by at least 2 % of the arrivals: `growth` is the mean number waiting in the last third of the span less that
   in the first third, over the arrivals of two thirds of the span. In a steady overload it is 1 - served/arriving;
2. that difference is at least 2 * sqrt(n) requests for n arrivals: a random queue exactly at its limit moves by
   about 0.6 * sqrt(n), one below it by less, so a few waiting moments never count;
3. at no start of a step in the last third was nobody held back: the queue did not drain.

Below 30 arrivals nothing is said, and if all arrive at one moment there is no rate to speak of: `batch`. Near the
limit, n arrivals tell an overload from a full but steady engine only above a growth of about 3 / sqrt(n). What is said
is of these arrivals: a load that ends before its first requests are done may be above what could be held for ever.

**Scarce.** Of the time in which somebody was held back, what kept the request admitted next from its place: all
`seats` were taken; the free `kv_blocks` would not have held its first chunk (to 1 % of the cache: watermarks); the
`token_budget` left in the step was smaller than that chunk; else it was the `policy`, which wanted it so.

**Busy share** is of the arrival span. It says little: an engine that decodes one request is busy, too.

**Margin.** The factor by which the rate of arrivals could grow until the engine saturates (below 1: would have to
fall). Here it is estimated. `served`, of a saturated run: 1 - growth, the share of the arrivals that was admitted
while more came. `fluid`, of one that is not: the rate that a full engine would serve (`optimizer.report.fluid`) over
that of the arrivals. None where the policy held requests back for 1 % of the time and more: what it would do
with a full engine cannot be read off. `simulated` (`optimizer.report.margin`) finds it for any policy.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.problem import Engine, Requests, Schedule
from optimizer.problem.columns import Floats, Ints
from optimizer.problem.kv_use import kv_tokens_by_run
from optimizer.report.fluid import fluid_rate
from optimizer.report.timeline import Episodes

Label = Literal["batch", "saturated", "not saturated", "too few requests"]

LEAST_GROWTH = 0.02
LEAST_RISE = 2.0
"""In square roots of the number of arrivals."""
LEAST_REQUESTS = 30
WATERMARK = 0.01
SEEN_FULL = 0.25
"""Share of busy time in which a full batch must have been seen to be taken for the usual one: rare ones are odd."""
LEAST_HELD = 0.01
"""Share of busy time from which on a policy that holds requests back by itself makes an estimate worthless."""

_MOMENT_S = 1e-9
"""Shorter than any step."""

LIMITS = ("seats", "kv_blocks", "token_budget", "policy")


def saturation(schedule: Schedule, requests: Requests, engine: Engine) -> dict[str, Any]:
    """Say whether a run was saturated, how far from it, and what was scarce: definitions at the top of the module.

    Parameters
    ----------
    schedule, requests, engine
        As simulated.

    Returns
    -------
    dict
        JSON values: `label`; `growth` and `busy_share` (None for a batch); `held_back_share`, of busy time;
        `scarce`, shares of busy time by limit, without those that are 0; `margin` and `margin_by`, None for a
        batch, with too few requests, and where only a simulation can tell.

    Notes
    -----
    O(n log n) for n rows of the schedule; nothing is simulated.

    Examples
    --------
    Two seats, 50 requests per second of which each takes half a second:

    >>> from optimizer.problem import Instance, StepTime
    >>> from optimizer.simulator import simulate
    >>> engine = Engine(name="toy", kv_blocks=100, max_num_seqs=2, step_time=StepTime.affine(base_s=0.1))
    >>> columns = {"arrival_s": [i / 50 for i in range(100)], "prompt_tokens": [9] * 100, "output_tokens": [5] * 100}
    >>> run = simulate(Instance("fast", Requests.from_columns(columns), engine))
    >>> found = saturation(run.schedule, run.instance.requests, engine)
    >>> found["label"], list(found["scarce"]), found["margin_by"]
    ('saturated', ['seats'], 'served')
    """
    stays = Episodes.of(schedule, requests)
    left = _held_back(schedule, stays, engine.async_scheduling)
    busy_s = schedule.end_s - schedule.start_s
    total_s = float(busy_s.sum())
    # Whoever finishes with a step still has a seat in the next one, where that was composed before.
    lag_s = _MOMENT_S if engine.async_scheduling else 0.0
    running = _by_then(schedule, stays.admitted_s) - _by_then(schedule, stays.left_s + lag_s)
    limit = _limits(schedule, requests, engine, running, left > 0)
    scarce = {
        name: share
        for place, name in enumerate(LIMITS)
        if (share := _share(float(busy_s[limit == place].sum()), total_s)) > 0
    }
    said: dict[str, Any] = {
        "label": "batch",
        "growth": None,
        "busy_share": None,
        "held_back_share": _share(float(busy_s[left > 0].sum()), total_s),
        "scarce": scarce,
        "margin": None,
        "margin_by": None,
    }
    first, last = float(requests.arrival_s[0]), float(requests.arrival_s[-1])
    n, span_s = len(requests), last - first
    if span_s == 0:
        return said
    rise = _rise(stays, first, last)
    growth = rise / (n * 2 / 3)
    within = np.clip(schedule.end_s, first, last) - np.clip(schedule.start_s, first, last)
    said |= {"growth": round(growth, 6), "busy_share": _share(float(within.sum()), span_s)}
    label = _label(
        n, growth, rise, left[(schedule.start_s >= last - span_s / 3) & (schedule.start_s <= last)]
    )
    said["label"] = label
    if label == "saturated":
        said |= {"margin": round(max(1 - growth, 0.0), 4), "margin_by": "served"}
    elif label == "not saturated" and scarce.get("policy", 0.0) < LEAST_HELD:
        # What was served, could be.
        rate = fluid_rate(schedule, requests, engine, _full_batch(running, limit, busy_s))
        margin = max(1.0, rate / (n / span_s))
        said |= {"margin": round(margin, 4), "margin_by": "fluid"}
    return said


def _label(n: int, growth: float, rise: float, left: Ints) -> Label:
    if n < LEAST_REQUESTS:
        return "too few requests"
    grew = growth >= LEAST_GROWTH and rise >= LEAST_RISE * n**0.5
    return "saturated" if grew and left.size and bool((left > 0).all()) else "not saturated"


def _share(part: float, whole: float) -> float:
    return round(min(part / whole, 1.0), 4) if whole > 0 else 0.0


def _rise(stays: Episodes, first_s: float, last_s: float) -> float:
    """Mean number of waiting requests in the last third of a span, less that in its first third."""
    queued = stays.queued_s
    admitted = np.where(np.isnan(stays.admitted_s), np.inf, stays.admitted_s)
    third = (last_s - first_s) / 3

    def mean(low: float, high: float) -> float:
        waited: Floats = np.clip(admitted, low, high) - np.clip(queued, low, high)
        return float(waited.sum()) / third

    return mean(last_s - third, last_s) - mean(first_s, first_s + third)


def _held_back(s: Schedule, stays: Episodes, lags: bool) -> Ints:
    """By run: the requests that its first step could have had and did not."""
    queued = stays.queued_s
    if lags and len(s.steps):
        running = np.clip(np.searchsorted(s.start_s, queued, side="right") - 1, 0, None)
        queued = queued + ((s.end_s - s.start_s) / s.steps)[running]
    # Those that a lagging step may not know yet can be admitted before they count as queued.
    held: Ints = np.maximum(_by_then(s, queued) - _by_then(s, stays.admitted_s), 0)
    return held


def _by_then(s: Schedule, times: Floats) -> Ints:
    """By run: how many moments lie no later than its start."""
    count: Ints = np.searchsorted(np.sort(times[~np.isnan(times)]), s.start_s, side="right")
    return count


def _full_batch(running: Ints, limit: Ints, busy_s: Floats) -> float | None:
    """Requests that ran, on average over time, while others found no place; None: that was too rare to tell."""
    weight = np.where((limit == LIMITS.index("seats")) | (limit == LIMITS.index("kv_blocks")), busy_s, 0.0)
    rare = weight.sum() < SEEN_FULL * busy_s.sum()
    return None if rare or not weight.any() else float(running @ weight / weight.sum())


def _limits(s: Schedule, requests: Requests, engine: Engine, running: Ints, held: NDArray[np.bool_]) -> Ints:
    """By run: the place in `LIMITS` of what held requests back; -1: nobody was."""
    runs = len(s.steps)
    limit = np.full(runs, -1, np.int64)
    if not held.any():
        return limit
    chunk, need = _needs_of_next(s, requests)
    kv = kv_tokens_by_run(s)[0]
    if engine.async_scheduling:
        kv = kv + _held_on(s, requests)
    free = engine.kv_tokens - kv
    seats = running >= engine.max_num_seqs
    blocks = free < need + s.block_tokens + WATERMARK * engine.kv_tokens
    tokens = s.prefill_tokens + s.decode_seqs
    budget = np.zeros(runs, np.bool_)
    if s.max_num_batched_tokens is not None:
        budget = s.max_num_batched_tokens - tokens < chunk
    limit[held] = np.select([seats, blocks, budget], [0, 1, 2], 3)[held]
    return limit


def _held_on(s: Schedule, requests: Requests) -> Ints:
    """By run: KV tokens of those that finished as it started, whose blocks its first step could not have yet."""
    run = np.searchsorted(s.start_s, s.finish_s - _MOMENT_S)
    held = -(-(requests.prompt_tokens + requests.output_tokens) // s.block_tokens) * s.block_tokens
    at = np.minimum(run, len(s.start_s) - 1)
    rows = np.abs(s.start_s[at] - s.finish_s) <= _MOMENT_S
    return np.bincount(at[rows], held[rows], minlength=len(s.steps)).astype(np.int64)


def _needs_of_next(s: Schedule, requests: Requests) -> tuple[Ints, Ints]:
    """By run: tokens of the first chunk of the request that is admitted next, and the KV that it takes at once."""
    runs = len(s.steps)
    opens = s.chunk_context == 0
    if len(s.cached_run):
        key = s.chunk_run * np.int64(len(requests)) + s.chunk_request
        opens |= np.isin(key, s.cached_run * np.int64(len(requests)) + s.cached_request)
    rows = np.flatnonzero(opens)
    rows = rows[np.argsort(s.chunk_run[rows], kind="stable")]
    held = np.zeros(len(requests), np.int64)
    np.maximum.at(held, s.hold_request, s.hold_tokens)
    chunk = np.append(s.chunk_tokens[rows], 0)
    need = np.append(np.maximum(s.chunk_tokens, held[s.chunk_request])[rows], 0)
    following = np.searchsorted(s.chunk_run[rows], np.arange(runs), side="right")
    return chunk[following], need[following]


def about(said: dict[str, Any]) -> list[str]:
    """Say in one or two lines what `saturation` found.

    >>> about({"label": "batch", "held_back_share": 0.5, "scarce": {"seats": 0.5}})
    ['batch: all requests at once; some were held back for 50 % of the busy time: by seats 50 %']
    """
    scarce = ", ".join(
        f"{name.replace('_', ' ')} {100 * share:.3g} %" for name, share in said["scarce"].items()
    )
    held = (
        f"some were held back for {100 * said['held_back_share']:.3g} % of the busy time: by {scarce}"
        if scarce
        else "nobody was held back"
    )
    label = said["label"]
    if label == "batch":
        return [f"batch: all requests at once; {held}"]
    if label == "saturated":
        grew = f"the queue grew by {100 * said['growth']:.2g} % of the arrivals as long as they came"
        return [f"SATURATED: {grew}; {held}", _margin(said)]
    if label == "not saturated":
        return [f"not saturated: the queue did not keep growing; {held}", _margin(said)]
    return [f"too few requests to tell whether the engine was saturated; {held}"]


def _margin(said: dict[str, Any]) -> str:
    busy = f"busy for {100 * said['busy_share']:.3g} % of the arrivals' span; margin: "
    margin, by = said["margin"], said["margin_by"]
    if by == "simulated":
        low, high = said["margin_between"]
        if high is None:
            return f"{busy}not saturated at {low:.3g} times the rate either (simulated)"
        if low is None:
            return f"{busy}saturated at {high:.2g} times the rate, too (simulated)"
        return f"{busy}saturates between {low:.3g} and {high:.3g} times the rate (simulated)"
    if by is None:
        return f"{busy}only a simulation can tell, for the policy holds requests back by itself (--margin)"
    if by == "served":
        return f"{busy}{margin:.3g} of the arrivals were served while more came (--margin simulates it)"
    return f"{busy}the rate could grow about {margin:.3g} times (estimate; --margin simulates it)"

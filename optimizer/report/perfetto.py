"""A trace that ui.perfetto.dev (or chrome://tracing) opens: steps, counters, and the life of each request.

The Chrome trace event format [1]_: a JSON object with a list of events, each with a phase `ph`, a process
`pid`, a thread `tid` and a moment `ts` in microseconds. Here process 1 is the engine (complete events `X`
for runs of equal steps, counters `C`), process 2 the requests (nested asynchronous spans `b`..`e`, and
instants `n` for preemptions).

References
----------
.. [1] https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from optimizer.problem import Engine, Requests, Schedule
from optimizer.problem.columns import Floats, Ints
from optimizer.problem.files import written_whole
from optimizer.report.timeline import Episodes, Timeline

_ENGINE, _REQUESTS = 1, 2
_MOST_NAMED = 16
"""Requests that a run names; a batch can hold thousands, and a tooltip cannot."""

# Of events at the same moment: inner spans end before outer ones, outer ones begin before inner ones.
_END_INNER, _END_OUTER, _INSTANT, _BEGIN_OUTER, _BEGIN_INNER, _COUNTER, _RUN = range(7)
_Event = tuple[int, int, str]
"""Nanosecond, place among the events of that moment, JSON."""


def write_perfetto(path: str | Path, schedule: Schedule, requests: Requests, engine: Engine) -> None:
    """Write the trace, whole or not at all.

    Parameters
    ----------
    path
        Usually ends in `.json`.
    schedule, requests, engine
        As simulated.
    """
    events = [*_runs(schedule, requests), *_counters(Timeline.of(schedule, requests, engine))]
    events += _lives(Episodes.of(schedule, requests), requests)
    events.sort(key=lambda event: event[:2])
    with written_whole(path) as out:
        out.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        out.write(",\n".join([*_names(schedule, engine), *(text for _, _, text in events)]))
        out.write("\n]}\n")


def _names(schedule: Schedule, engine: Engine) -> Iterator[str]:
    for pid, tid, kind, name in (
        (_ENGINE, 0, "process_name", f"engine {engine.name}"),
        (_ENGINE, 1, "thread_name", f"steps, {schedule.policy}"),
        (_REQUESTS, 0, "process_name", "requests"),
    ):
        name_of = {"name": kind, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": {"name": name}}
        yield json.dumps(name_of, separators=(",", ":"))


def _runs(schedule: Schedule, requests: Requests) -> Iterator[_Event]:
    s = schedule
    starts, ends = _nanoseconds(s.start_s), _nanoseconds(s.end_s)
    chunks = _by_run(s.chunk_run, s.chunk_request, s.chunk_tokens)
    preempted = _by_run(s.preempt_run, s.preempt_request, np.zeros_like(s.preempt_run))
    columns = (s.steps, s.decode_seqs, s.decode_context, s.prefill_tokens)
    first_step = s.first_step_s.tolist()
    for run, (steps, decodes, context, prefill) in enumerate(
        zip(*(c.tolist() for c in columns), strict=True)
    ):
        kind = "mixed" if prefill and decodes else "prefill" if prefill else "decode"
        args = {"steps": steps, "first_step_ms": round(first_step[run] * 1e3, 6), "prefill_tokens": prefill,
                "decode_requests": decodes, "decode_context_tokens": context}  # fmt: skip
        for name, rows in (("chunks", chunks.get(run)), ("preempted", preempted.get(run))):
            if rows:
                args[name] = _named(rows, requests)
        yield starts[run], _RUN, _text(
            kind if steps == 1 else f"{kind} x{steps}", "X", starts[run], _ENGINE, args, duration=ends[run] - starts[run]
        )  # fmt: skip


def _named(rows: list[tuple[int, int]], requests: Requests) -> str:
    shown = [requests.name(r) + (f": {tokens} tokens" if tokens else "") for r, tokens in rows[:_MOST_NAMED]]
    more = len(rows) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _by_run(run: Ints, request: Ints, tokens: Ints) -> dict[int, list[tuple[int, int]]]:
    """Requests, and tokens of each, by run."""
    rows: dict[int, list[tuple[int, int]]] = {}
    for at, who, amount in zip(run.tolist(), request.tolist(), tokens.tolist(), strict=True):
        rows.setdefault(at, []).append((who, amount))
    return rows


def _counters(timeline: Timeline) -> Iterator[_Event]:
    t = timeline
    moments, over = _nanoseconds(t.start_s), _nanoseconds(t.end_s)
    percent = np.round(t.kv_share * 100, 3)
    for name, columns in (
        ("requests", {"running": t.running, "waiting": t.waiting}),
        ("KV cache used (%)", {"used": percent}),
        ("tokens per step", {"prefill": t.prefill_tokens, "decode": t.decode_tokens}),
    ):
        series = zip(*(c.tolist() for c in columns.values()), strict=True)
        shown: tuple[float, ...] | None = None
        for at, values in zip(moments, series, strict=True):
            if values != shown:  # a counter holds until it is set again
                shown = values
                yield at, _COUNTER, _text(name, "C", at, _ENGINE, dict(zip(columns, values, strict=True)))
        if moments:
            yield over[-1], _COUNTER, _text(name, "C", over[-1], _ENGINE, dict.fromkeys(columns, 0))


def _lives(stays: Episodes, requests: Requests) -> Iterator[_Event]:
    times = (stays.queued_s, stays.admitted_s, stays.decode_s, stays.left_s)
    rows = list(zip(stays.request.tolist(), stays.preempted.tolist(),
                    *(_nanoseconds(x) for x in times), strict=True))  # fmt: skip
    # A request that never finished is left out of the picture from its last known moment on.
    for number, (request, preempted, queued, admitted, decode, left) in enumerate(rows):
        name = requests.name(request)

        def event(ph: str, title: str, at: int, place: int, who: int = request, **args: object) -> _Event:
            return at, place, _text(title, ph, at, _REQUESTS, args, request=who)

        known = [moment for moment in (queued, admitted, decode, left) if moment >= 0]
        first = number == 0 or rows[number - 1][0] != request
        last = number + 1 == len(rows) or rows[number + 1][0] != request
        if first:
            tokens = {"prompt_tokens": int(requests.prompt_tokens[request]),
                      "output_tokens": int(requests.output_tokens[request])}  # fmt: skip
            yield event("b", f"request {name}", queued, _BEGIN_OUTER, **tokens)
        phases = [("queued", queued), ("prefill", admitted), ("decode", decode)]
        bounds = [(title, at) for title, at in phases if at >= 0] + [("", known[-1])]
        for (title, begin), (_, end) in pairwise(bounds):
            if end > begin:
                yield event("b", title, begin, _BEGIN_INNER)
                yield event("e", title, end, _END_INNER)
        if preempted:
            yield event("n", "preempted", left, _INSTANT)
        if last:
            yield event("e", f"request {name}", known[-1], _END_OUTER)


def _text(
    name: str, ph: str, at: int, pid: int, args: dict[str, object], *, duration: int = -1, request: int = -1
) -> str:
    event: dict[str, object] = {"name": name, "ph": ph, "ts": at / 1e3, "pid": pid, "tid": 1}
    if duration >= 0:
        event["dur"] = duration / 1e3
    if request >= 0:
        event |= {"cat": "request", "id": request}
    if args:
        event["args"] = args
    return json.dumps(event, separators=(",", ":"))


def _nanoseconds(times_s: Floats) -> list[int]:
    """Whole nanoseconds; -1 for a moment that never came."""
    return [-1 if x != x else int(x) for x in np.round(times_s * 1e9).tolist()]

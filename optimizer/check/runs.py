"""The runs: their order and times, what takes part in them, and the limits on a step."""

from __future__ import annotations

from typing import Any

import numpy as np

from optimizer.capacity.step_time import StepClock
from optimizer.check.ledger import Ledger
from optimizer.check.report import Findings, Rule
from optimizer.problem import Instance, Schedule
from optimizer.problem.columns import Floats, Ints
from optimizer.units import seconds


def over_runs(first: Ints, last: Ints, amount: Any, runs: int) -> Ints:
    """Total by run of integer amounts that hold from run `first` to run `last`, exactly."""
    edges = np.zeros(runs + 1, np.int64)
    np.add.at(edges, first, amount)
    np.subtract.at(edges, last + 1, amount)
    return np.cumsum(edges[:runs])


def by_run(run: Ints, amount: Any, runs: int) -> Ints:
    """Total by run of integer amounts."""
    total = np.zeros(runs, np.int64)
    np.add.at(total, run, amount)
    return total


def check_runs(
    schedule: Schedule, instance: Instance, ledger: Ledger, decoded: Ints, found: Findings
) -> None:
    """Check participants, limits and times of every run.

    Parameters
    ----------
    schedule, instance
        What is checked; rows already sound.
    ledger
        The requests' side of it.
    decoded
        Decode steps before each run.
    """
    s, runs = schedule, len(schedule.steps)
    active = s.decode_seqs > 0
    seqs = np.where(active, over_runs(s.decode_first_run, s.decode_last_run, 1, runs), 0)
    # In the first step of run r, a segment's context is what it began with, its decode steps since, and one.
    offset = ledger.decode_before - decoded[s.decode_first_run]
    context = over_runs(s.decode_first_run, s.decode_last_run, offset, runs)
    context = np.where(active, context + seqs * (decoded[:-1] + 1), 0)
    prefill = by_run(s.chunk_run, s.chunk_tokens, runs)

    found.add_where(
        Rule.EMPTY_RUN,
        (seqs == 0) & (prefill == 0),
        lambda run: {"run": run, "message": "nobody prefills or decodes"},
    )
    for name, counted in (("decode_seqs", seqs), ("decode_context", context), ("prefill_tokens", prefill)):
        said = getattr(s, name)

        def tell(run: int, name: str = name, said: Ints = said, counted: Ints = counted) -> dict[str, Any]:
            return {
                "run": run,
                "message": f"{name} says {said[run]:,}; the participants make {counted[run]:,}",
            }

        found.add_where(Rule.COUNTS, said != counted, tell)
    _check_budget(s, instance, prefill + seqs, found)
    _check_seats(s, instance, ledger, found)
    _check_arrivals(s, instance, found)
    _check_order(s, found)
    _check_times(s, StepClock(instance.engine.step_time), seqs, context, prefill, found)


def _check_budget(s: Schedule, instance: Instance, tokens: Ints, found: Findings) -> None:
    budget = instance.engine.max_num_batched_tokens
    if s.max_num_batched_tokens is None:
        found.notes.append("the policy knows no token budget; the rule `budget` was not applied")
        return
    if s.max_num_batched_tokens != budget:
        found.add(
            Rule.BUDGET, f"the policy kept a budget of {s.max_num_batched_tokens}; the engine has {budget}"
        )
    found.add_where(
        Rule.BUDGET,
        tokens > budget,
        lambda run: {"run": run, "message": f"{tokens[run]:,} tokens in a step; the budget is {budget:,}"},
    )


def _check_seats(s: Schedule, instance: Instance, ledger: Ledger, found: Findings) -> None:
    runs, seats = len(s.steps), instance.engine.max_num_seqs
    # A reservation outlasts the computing that it is for; that there is one for each is another rule.
    taken = (
        over_runs(s.hold_first_run, s.hold_last_run, 1, runs)
        if s.reserves
        else over_runs(ledger.episode_first, ledger.episode_last, 1, runs)
    )
    found.add_where(
        Rule.SEATS,
        taken > seats,
        lambda run: {"run": run, "message": f"{taken[run]:,} requests hold KV; there are {seats:,} seats"},
    )


def _check_arrivals(s: Schedule, instance: Instance, found: Findings) -> None:
    arrival = instance.requests.arrival_s
    never = len(s.steps)
    earliest = np.full(len(arrival), never)
    for request, run in (
        (s.chunk_request, s.chunk_run),
        (s.decode_request, s.decode_first_run),
        (s.cached_request, s.cached_run),
        (s.hold_request, s.hold_first_run),
    ):
        np.minimum.at(earliest, request, run)
    start = np.append(s.start_s, np.inf)[earliest]
    found.add_where(
        Rule.ARRIVAL,
        # Arrivals are kept to the nanosecond.
        ~(start >= arrival - _tolerance(arrival)),
        lambda r: {
            "run": int(earliest[r]),
            "request": r,
            "message": f"taken up at {start[r]:.9f} s; it arrives at {arrival[r]:.9f} s",
        },
    )


def _check_order(s: Schedule, found: Findings) -> None:
    before = np.concatenate(([0.0], s.end_s))[:-1]
    found.add_where(
        Rule.RUN_ORDER,
        ~(s.start_s >= before - _tolerance(before)),
        lambda run: {
            "run": run,
            "message": f"starts at {s.start_s[run]:.9f} s; the run before ends at {before[run]:.9f} s",
        },
    )


def _check_times(
    s: Schedule, clock: StepClock, seqs: Ints, context: Ints, prefill: Ints, found: Findings
) -> None:
    first_s, total_s, even = _durations(s, clock, seqs, context, prefill)
    found.add_where(
        Rule.TIMES,
        ~even,
        lambda run: {
            "run": run,
            "message": "its steps do not grow by an equal amount: the step-time model changes pieces within it; split it",
        },
    )
    for name, said, due in (
        ("first_step_s", s.first_step_s, first_s),
        ("end_s", s.end_s, s.start_s + total_s),
    ):

        def tell(run: int, name: str = name, said: Floats = said, due: Floats = due) -> dict[str, Any]:
            return {
                "run": run,
                "message": f"{name} is {said[run]:.9f}; the step-time model makes it {due[run]:.9f}",
            }

        found.add_where(Rule.TIMES, ~(np.abs(said - due) <= _tolerance(due)) & even, tell)


def _durations(
    s: Schedule, clock: StepClock, seqs: Ints, context: Ints, prefill: Ints
) -> tuple[Floats, Floats, Any]:
    """Give of each run the time of its first step, of all, and whether the steps grow evenly."""
    runs = len(s.steps)
    n, c = s.chunk_tokens, s.chunk_context
    columns = (
        prefill,
        by_run(s.chunk_run, n * c + n * (n + 1) // 2, runs),
        by_run(s.chunk_run, 1, runs),
        by_run(s.chunk_run, n + c, runs),
        seqs,
        context,
        by_run(s.chunk_run, n * n, runs),  # the prompts' query-key pairs grow by this from step to step
        s.steps,
    )
    first_s, total_s, even = np.zeros(runs), np.zeros(runs), np.ones(runs, np.bool_)
    for run, row in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        first, total, even[run] = _run_time(clock, *row)
        first_s[run], total_s[run] = seconds(first), seconds(total)
    return first_s, total_s, even


def _run_time(
    clock: StepClock,
    tokens: int,
    attention: int,
    chunks: int,
    chunk_context: int,
    decodes: int,
    context: int,
    attention_growth: int,
    k: int,
) -> tuple[int, int, bool]:
    """Give in ticks the first step and the whole run of k steps, and whether the steps grow evenly."""

    def step(j: int) -> int:
        return clock.step(
            tokens, attention + j * attention_growth, chunks, chunk_context + j * tokens,
            decodes, context + j * decodes,
        )  # fmt: skip

    first = step(0)
    if k == 1:
        return first, first, True
    last = step(k - 1)
    # A maximum of affine functions is convex: it is a straight line where its ends have one slope.
    even = k < 3 or step(1) - first == last - step(k - 2)
    return first, k * (first + last) // 2, even


def _tolerance(moment_s: Floats) -> Floats:
    return 1e-9 + 1e-12 * np.abs(moment_s)

"""The checker says yes to what follows the rules, and `kv_use` agrees with counting."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.check import check
from optimizer.problem import Instance, PrefixHashes, Schedule
from optimizer.problem.kv_use import kv_use
from tests.check.maker import instance, make_paged, make_reserved

rows = st.lists(
    st.tuples(st.integers(0, 300_000_000), st.integers(1, 150), st.integers(1, 60)), min_size=1, max_size=14
).map(sorted)


@st.composite
def sharing(draw) -> Instance:
    """Requests that begin with one of two system prompts, hashed in pieces of 8, 16 or 48 tokens."""
    per_hash = draw(st.sampled_from([8, 16, 48]))
    numbers: dict[tuple, int] = {}
    lists, lengths = [], []
    drawn = draw(rows)
    for arrival, own, output in drawn:
        system, common = draw(st.sampled_from(((0, 40), (1, 130))))
        tokens = [(system, k) for k in range(common)] + [(len(lists), k) for k in range(own)]
        lists.append([
            numbers.setdefault(tuple(tokens[: k + per_hash]), len(numbers))
            for k in range(0, len(tokens) - per_hash + 1, per_hash)
        ])  # fmt: skip
        lengths.append((arrival, len(tokens), output))
    ids = np.array([x for hashes in lists for x in hashes], np.int64)
    starts = np.cumsum([0, *map(len, lists)])
    return instance(lengths, PrefixHashes(ids, starts, per_hash), kv_blocks=400, prefix_caching=True)


def _assert_good(schedule: Schedule, made: Instance) -> None:
    report = check(schedule, made)
    assert report, str(report)
    mean, peak = kv_use(schedule, made.requests, made.engine)
    counted_mean, counted_peak = _counted_kv_use(schedule, made)
    np.testing.assert_allclose((mean, peak), (counted_mean, counted_peak), rtol=1e-9)


def _counted_kv_use(s: Schedule, made: Instance) -> tuple[float, float]:
    """As `kv_use` defines it, request by request in every step."""
    r, b = made.requests, s.block_tokens
    context: dict[int, int] = {}
    claimed = {
        (int(q), int(run)): int(n)
        for run, q, n in zip(s.cached_run, s.cached_request, s.cached_tokens, strict=True)
    }
    free: dict[int, int] = {}
    generated = np.zeros(len(r), int)
    target = r.prompt_tokens.copy()
    run_of = np.repeat(np.arange(len(s.steps)), s.steps)
    held = []
    for run, step in zip(run_of.tolist(), s.iterate(), strict=True):
        for i in step.preempted:
            del context[i]
            target[i] = r.prompt_tokens[i] + generated[i]
        for i, n in step.prefill:
            if i not in context:
                context[i] = free[i] = claimed.get((i, run), 0)
            context[i] += n
        for i in step.decode:
            context[i] += 1
        if s.reserves:
            live = (s.hold_first_run <= run) & (run <= s.hold_last_run)
            held.append(int(s.hold_tokens[live].sum()))
        else:
            held.append(sum(-(-c // b) - free[i] // b for i, c in context.items()) * b)
        for i in [*step.decode, *(i for i, _ in step.prefill if context[i] == target[i])]:
            generated[i] += 1
            if generated[i] == r.output_tokens[i]:
                del context[i]
    starts = np.array([step.start_s for step in s.iterate()])
    is_last = np.append(np.diff(run_of) > 0, True)
    took = np.where(is_last, s.end_s[run_of], np.append(starts[1:], np.nan)) - starts
    return float(np.dot(held, took) / took.sum()) / made.engine.kv_tokens, max(held) / made.engine.kv_tokens


@settings(max_examples=100, deadline=None)
@given(rows, st.booleans(), st.booleans(), st.sampled_from([1, 16]))
def test_paged_schedules_are_good(drawn, exclusive, merge, block_tokens):
    made = instance(drawn, kv_blocks=14)
    _assert_good(make_paged(made, exclusive=exclusive, merge=merge, block_tokens=block_tokens), made)


@settings(max_examples=60, deadline=None)
@given(rows, st.booleans(), st.integers(1, 4))
def test_reserving_schedules_are_good(drawn, contiguous, batch):
    made = instance(drawn, kv_blocks=60)
    report_of = make_reserved(made, batch=batch, contiguous=contiguous)
    _assert_good(report_of, made)
    assert "no token budget" in check(report_of, made).notes[0]


@settings(max_examples=60, deadline=None)
@given(sharing())
def test_prefix_sharing_schedules_are_good(made):
    _assert_good(make_paged(made), made)

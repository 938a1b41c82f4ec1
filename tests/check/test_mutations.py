"""Good schedules broken on purpose, in one way each: the checker names the rule."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.check import Rule, check
from optimizer.check.report import SHOWN_PER_RULE
from optimizer.problem import Schedule, StepPiece, StepRegime, StepTime
from tests.check.broken import CASES, PAGED, RESERVED, SHARED, other, paged, put, reserved, sharing
from tests.check.maker import Recorder, instance, make_paged


@pytest.mark.parametrize(("made", "make"), [(PAGED, paged), (RESERVED, reserved), (SHARED, sharing)])
def test_the_originals_are_good(made, make):
    schedule = make()
    assert check(schedule, made), str(check(schedule, made))


def test_the_originals_have_something_to_break():
    assert len(paged().preempt_run)
    assert sharing().cached_run[0] == 0, "a hit within the very first step"


@pytest.mark.parametrize(("made", "make", "name", "rule", "break_it"), CASES, ids=[case[2] for case in CASES])
def test_the_checker_names_the_broken_rule(made, make, name, rule, break_it):
    report = check(break_it(make()), made)
    assert rule in report.rules, str(report)
    assert not report.ok
    assert rule in str(report)
    assert any(v.rule is rule for v in report.violations)


def test_every_rule_is_broken_by_some_case():
    assert {case[3] for case in CASES} | {Rule.PREFIX_KEPT} == set(Rule)


def test_steps_that_do_not_grow_evenly_are_no_run():
    made = instance([(0, 20, 11)])
    pieces = StepPiece(base_s=0.004, per_decode_context_s=1e-5), StepPiece(base_s=0.00425)
    made = other(made, step_time=StepTime(regimes=(StepRegime(pieces=pieces),)))
    book = Recorder(made, 64)
    now = book.step(0, [(0, 20)], [])
    for _ in range(10):
        now = book.step(now, [], [0])
    schedule = book.schedule()
    assert schedule.steps.tolist() == [1, 10]
    report = check(schedule, made)
    assert any("split it" in v.message for v in report.violations), str(report)


def test_one_mistake_everywhere_stays_short_and_hides_no_other():
    made = instance([(0, 30, 2)] * 200, max_num_batched_tokens=64, kv_blocks=400)
    schedule = dataclasses.replace(make_paged(made), finish_s=np.zeros(200))
    schedule = put(schedule, "decode_context", -1, 0)
    report = check(schedule, made)
    assert report.rules == {Rule.FINISH, Rule.COUNTS}
    assert report.counts[Rule.FINISH] == 200
    assert len(report.violations) == SHOWN_PER_RULE + 1
    assert f"{200 - SHOWN_PER_RULE} more" in str(report)


def test_a_violation_says_where_and_who():
    made = instance([(0, 30, 2), (0, 30, 5)])
    made = dataclasses.replace(made, requests=made.requests.replace(ids=("alice", "bob")))
    schedule = put(make_paged(made), "finish_s", 1, 9.0)
    (violation,) = check(schedule, made).violations
    assert (violation.rule, violation.run, violation.step, violation.request) == (Rule.FINISH, 2, 4, "bob")
    assert str(violation).startswith("finish, run 2, step 4, request bob: finish_s is 9.000000000 s")


TELLING = (
    "chunk_run", "chunk_request", "chunk_tokens", "chunk_context", "decode_request", "decode_first_run",
    "decode_last_run", "preempt_request", "steps", "decode_seqs", "decode_context", "prefill_tokens",
    "start_s", "end_s", "first_step_s", "first_token_s", "finish_s",
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(TELLING),
    st.integers(0, 10**6),
    st.sampled_from([-(10**15), -40, -2, -1, 1, 2, 40, 10**15]),
)
def test_no_number_of_a_paged_schedule_can_be_changed(column, index, by):
    schedule = paged()
    index %= len(getattr(schedule, column))
    changed = put(schedule, column, index, lambda x: x + by)
    report = check(changed, PAGED)
    # A segment that reaches on into a run without decodes says the same as before.
    same = column in ("decode_first_run", "decode_last_run") and _steps(changed) == _steps(schedule)
    assert same or not report.ok, (column, index, by)


def _steps(schedule: Schedule) -> list:
    try:
        return list(schedule.iterate())
    except IndexError:
        return []


@settings(max_examples=200, deadline=None)
@given(st.data(), st.sampled_from([(PAGED, paged), (RESERVED, reserved), (SHARED, sharing)]))
def test_no_schedule_makes_the_checker_raise(data, original):
    made, make = original
    schedule = make()
    columns = [f.name for f in dataclasses.fields(schedule) if np.size(getattr(schedule, f.name)) > 1]
    for _ in range(data.draw(st.integers(1, 6))):
        column = data.draw(st.sampled_from(columns))
        index = data.draw(st.integers(0, len(getattr(schedule, column)) - 1))
        value = st.one_of(st.integers(-3, 300), st.sampled_from([-(2**62), 2**62, 10**12, 10**11]))
        schedule = put(schedule, column, index, data.draw(value))
    str(check(schedule, made))


def test_nothing_at_all():
    empty = dict.fromkeys(Schedule.__dataclass_fields__, np.zeros(0, np.int64))
    empty |= {"policy": "", "block_tokens": 16, "max_num_batched_tokens": 64}
    nan = np.full(len(PAGED.requests), np.nan)
    report = check(Schedule(**empty | {"first_token_s": nan, "finish_s": nan}), PAGED)
    assert report.rules == {Rule.LOST}
    assert report.counts[Rule.LOST] == len(PAGED.requests)

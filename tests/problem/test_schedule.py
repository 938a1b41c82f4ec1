"""Schedules: steps out of runs, JSON that comes back the same, broken documents explained."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.problem import Schedule, Step
from optimizer.problem.schedule import SCHEMA
from optimizer.simulator import simulate
from tests.policies.toy import instances
from tests.problem.hand import by_hand, schedule


def same(a: Schedule, b: Schedule) -> bool:
    """Say whether two schedules are equal, column by column, to the last bit."""
    for f in fields(Schedule):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if isinstance(x, np.ndarray):
            if x.dtype != y.dtype or not np.array_equal(x, y, equal_nan=x.dtype.kind == "f"):
                return False
        elif x != y:
            return False
    return True


def test_every_step_of_the_schedule_by_hand():
    """Chunks, decodes and preemptions of each step, a preemption only in the first step of its run."""
    assert list(by_hand().iterate()) == [
        Step(1.0, ((0, 6),), (), ()),
        Step(2.0, (), (0,), ()),
        Step(2.5, (), (0,), ()),
        Step(3.5, (), (0,), ()),
        Step(5.0, ((1, 4),), (0,), ()),
        Step(7.0, ((2, 5),), (), ()),
        Step(9.0, (), (2,), ()),
        Step(10.0, ((2, 7),), (), (2,)),
    ]


def test_steps_of_a_run_grow_by_the_same_amount():
    """Steps of 3, 5, 7 and 9 s, with a chunk in each and somebody thrown out before the first."""
    run = schedule(
        start_s=[100], end_s=[124], first_step_s=[3], steps=[4], decode_seqs=[1], decode_context=[8],
        prefill_tokens=[2], chunk_run=[0], chunk_request=[5], chunk_tokens=[2], chunk_context=[4],
        decode_request=[6], decode_first_run=[0], decode_last_run=[0], preempt_run=[0], preempt_request=[7],
    )  # fmt: skip
    steps = list(run.iterate())
    assert [step.start_s for step in steps] == [100, 103, 108, 115]
    assert {(step.prefill, step.decode) for step in steps} == {(((5, 2),), (6,))}
    assert [step.preempted for step in steps] == [(7,), (), (), ()]


def test_a_decode_segment_rests_in_runs_without_decodes():
    """A run in which decodes are stalled lies inside the segment and does not belong to it."""
    stalled = schedule(
        start_s=[0, 1, 2], end_s=[1, 2, 3], first_step_s=[1, 1, 1], steps=[1, 1, 1], decode_seqs=[1, 0, 1],
        decode_context=[5, 0, 6], prefill_tokens=[0, 4, 0], chunk_run=[1], chunk_request=[1], chunk_tokens=[4],
        chunk_context=[0], decode_request=[0], decode_first_run=[0], decode_last_run=[2],
    )  # fmt: skip
    assert [step.decode for step in stalled.iterate()] == [(0,), (), (0,)]


@settings(deadline=None, max_examples=50)
@given(instances())
def test_the_steps_of_a_run_fill_its_time(instance):
    """Steps follow each other, the first of a run at its start, and lie as far apart as the run is long."""
    made = simulate(instance).schedule
    starts = np.array([step.start_s for step in made.iterate()])
    assert len(starts) == made.steps.sum()
    assert (np.diff(starts) > 0).all()
    first = np.cumsum(made.steps) - made.steps
    np.testing.assert_array_equal(starts[first], made.start_s)
    longer = made.steps > 1
    np.testing.assert_allclose(starts[first[longer] + 1] - starts[first[longer]], made.first_step_s[longer])


def test_totals():
    """The last finish counts, whoever is not finished; nothing is reserved."""
    assert by_hand().makespan_s == 12.0
    assert by_hand().reserves is False
    assert schedule(hold_request=[0]).reserves is True


@settings(deadline=None, max_examples=40)
@given(instances(), st.sampled_from(["vllm-v1", "vllm-v0", "orca-max", "lightllm", "fastgen"]))
def test_json_comes_back_as_the_same_schedule(tmp_path_factory, instance, policy):
    """Through a file, with reservations and without a token budget, too."""
    path = tmp_path_factory.mktemp("schedule") / "s.json"
    made = simulate(instance, policy).schedule
    made.write(path)
    assert same(Schedule.read(path), made)


def test_a_schedule_with_unfinished_requests_comes_back_the_same(tmp_path):
    """Never is null in the file: NaN is no JSON."""
    by_hand().write(tmp_path / "s.json")
    text = (tmp_path / "s.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["finish_s"] == [6.0, 6.0, 12.0, None]
    assert same(Schedule.read(tmp_path / "s.json"), by_hand())
    assert not same(by_hand(), schedule())


def complaint(**changes) -> InputError:
    with pytest.raises(InputError) as caught:
        Schedule.from_document(by_hand().to_document() | changes, file="s.json")
    return caught.value


@pytest.mark.parametrize("given_document", [[], None, {}, {"schema": "optimizer/instance@1"}], ids=repr)
def test_another_schema_is_refused(given_document):
    """Also what is no object at all."""
    with pytest.raises(InputError) as caught:
        Schedule.from_document(given_document, file="s.json")
    assert str(caught.value) == f's.json: this is no schedule: expected an object with "schema": "{SCHEMA}"'


@pytest.mark.parametrize("name", [f.name for f in fields(Schedule)])
def test_every_column_must_be_there(name):
    """A missing one is named."""
    document = by_hand().to_document()
    del document[name]
    with pytest.raises(InputError) as caught:
        Schedule.from_document(document, file="s.json")
    assert str(caught.value) == f"s.json, field {name}: is missing"


@pytest.mark.parametrize("value", [0, -1, 2.5, "16", True, [16]], ids=repr)
@pytest.mark.parametrize("name", ["block_tokens", "max_num_batched_tokens"])
def test_sizes_are_whole_and_positive(name, value):
    """The budget may be null, the block size may not."""
    error = complaint(**{name: value})
    assert str(error) == f"s.json, field {name}: {value!r}; expected a whole number >= 1"


def test_a_budget_may_be_unknown_and_a_block_size_not():
    """Some systems know no budget; all hold KV in some granularity."""
    document = by_hand().to_document() | {"max_num_batched_tokens": None}
    assert Schedule.from_document(document).max_num_batched_tokens is None
    assert complaint(block_tokens=None).field == "block_tokens"


@pytest.mark.parametrize(
    "value", [["x"], [2.5], [None], [math.nan], [[1], [2, 3]], [{}], "abc", {"a": 1}, None], ids=repr
)
@pytest.mark.parametrize("name", ["steps", "chunk_tokens", "hold_offset"])
def test_columns_of_whole_numbers_hold_whole_numbers(name, value):
    """Anything else is named with its field."""
    error = complaint(**{name: value})
    assert (error.file, error.field) == ("s.json", name)
    assert "expected a list of numbers" in error.problem


@pytest.mark.parametrize("value", [["x"], [{}], 3, None], ids=repr)
@pytest.mark.parametrize("name", ["start_s", "finish_s"])
def test_columns_of_moments_hold_numbers(name, value):
    """Or null."""
    error = complaint(**{name: value})
    assert (error.file, error.field) == ("s.json", name)
    assert "expected a list of numbers" in error.problem


@pytest.mark.parametrize(
    "name",
    ["end_s", "first_step_s", "steps", "chunk_run", "chunk_context", "decode_request", "decode_last_run",
     "preempt_run", "cached_tokens", "hold_offset"],
)  # fmt: skip
def test_columns_of_one_table_are_equally_long(name):
    """One entry more in one column of a table: the message names the columns of that table."""
    error = complaint(**{name: [*by_hand().to_document()[name], 1]})
    assert name in error.problem
    assert error.problem.endswith("differ in length; expected equal columns")


def test_a_file_that_is_no_json_is_named_with_its_line(tmp_path):
    """As with instances."""
    (tmp_path / "s.json").write_text('{"schema":\n"x",\n')
    with pytest.raises(InputError, match=r"s\.json, line 3: is no JSON"):
        Schedule.read(tmp_path / "s.json")

"""Plans: what they may say, and that writing and reading gives them back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.problem.plan import OrderPlan, PlanStep, StepsPlan, plan_from_document, read_plan

moments = st.none() | st.floats(0, 1e6)


@st.composite
def order_plans(draw):
    n = draw(st.integers(0, 6))
    when = draw(st.sampled_from(["arrival", "seconds", "rounds"]))
    options = {
        "order": draw(st.permutations(range(n))),
        "max_seqs": draw(st.none() | st.integers(1, 9)),
        "prefill_tokens": draw(st.none() | st.integers(1, 99)),
        "mixing": draw(st.sampled_from(["mixed", "exclusive"])),
        "memory": draw(st.sampled_from(["plain", "peak-safe"])),
    }
    if when == "seconds":
        options["earliest_s"] = draw(st.lists(moments, min_size=n, max_size=n))
    if when == "rounds":
        options["start_round"] = draw(st.lists(st.integers(0, 99), min_size=n, max_size=n))
        options["round_s"] = draw(st.none() | st.floats(1e-6, 10))
    return OrderPlan(**options)


@st.composite
def plan_steps(draw):
    rows = draw(st.lists(st.integers(0, 20), min_size=1, max_size=6, unique=True))
    cut = draw(st.integers(0, len(rows)))
    return PlanStep(
        prefill=tuple((row, draw(st.integers(1, 100))) for row in rows[:cut]),
        decode=tuple(rows[cut:]),
        preempt=tuple(draw(st.lists(st.integers(0, 20), max_size=2, unique=True))),
        not_before_s=draw(moments),
    )


@given(plan=order_plans() | st.lists(plan_steps(), max_size=5).map(lambda s: StepsPlan(steps=tuple(s))))
def test_a_plan_survives_its_document(plan):
    assert plan_from_document(json.loads(json.dumps(plan.to_document()))) == plan


def test_a_plan_survives_its_file(tmp_path):
    plan = OrderPlan.of_starts([3, 0, 3], round_s=0.5)
    plan.write(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    assert plan.order == (1, 0, 2)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "this is no plan"),
        ({"schema": "optimizer/instance@1"}, "this is no plan"),
        ({"schema": "optimizer/plan@1"}, "form"),
        ({"schema": "optimizer/plan@1", "form": "wish"}, "wish"),
        ({"schema": "optimizer/plan@1", "form": "order", "order": [0, 1, 0]}, "request 0 is named twice"),
        ({"schema": "optimizer/plan@1", "form": "order", "order": [-1]}, "order"),
        ({"schema": "optimizer/plan@1", "form": "order", "order": [0.5]}, "order"),
        ({"schema": "optimizer/plan@1", "form": "order", "speed": 3}, "speed"),
        (
            {"schema": "optimizer/plan@1", "form": "order", "earliest_s": [0], "start_round": [0]},
            "give one of them",
        ),
        ({"schema": "optimizer/plan@1", "form": "order", "round_s": 1.0}, "give start_round"),
        ({"schema": "optimizer/plan@1", "form": "order", "earliest_s": [float("nan")]}, "earliest_s"),
        ({"schema": "optimizer/plan@1", "form": "order", "max_seqs": 0}, "max_seqs"),
        ({"schema": "optimizer/plan@1", "form": "steps"}, "steps"),
        ({"schema": "optimizer/plan@1", "form": "steps", "steps": [{}]}, "computes nothing"),
        (
            {"schema": "optimizer/plan@1", "form": "steps", "steps": [{"prefill": [[0, 0]]}]},
            "greater than or equal to 1",
        ),
        (
            {"schema": "optimizer/plan@1", "form": "steps", "steps": [{"prefill": [[1, 2]], "decode": [1]}]},
            "names a request twice",
        ),
    ],
)
def test_nonsense_is_told_where_it_is(document, words):
    with pytest.raises(InputError, match=words) as told:
        plan_from_document(document, file="p.json")
    assert told.value.file == "p.json"

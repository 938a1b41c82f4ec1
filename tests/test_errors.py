"""What an input error says, and that it survives the way from a worker process."""

from __future__ import annotations

import copy
import pickle

import pytest

from optimizer.errors import InputError, OptimizerError, PolicyError


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({}, "it is wrong"),
        ({"file": "t.csv"}, "t.csv: it is wrong"),
        ({"line": 7}, "line 7: it is wrong"),
        ({"field": "arrival_s"}, "field arrival_s: it is wrong"),
        ({"file": "t.csv", "line": 0}, "t.csv, line 0: it is wrong"),
        ({"file": "t.csv", "line": 7, "field": "id"}, "t.csv, line 7, field id: it is wrong"),
    ],
)
def test_the_message_names_the_place_as_far_as_it_is_known(place, said):
    """File, line and field stand before the problem, each only where it was given."""
    assert str(InputError("it is wrong", **place)) == said


@pytest.mark.parametrize("again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_an_input_error_can_be_pickled_and_copied(again):
    """Comparisons run in processes: all parts of an error come back, and the place is not said twice."""
    error = InputError("it is wrong", file="t.csv", line=7, field="id")
    twin = again(error)
    assert type(twin) is InputError
    assert (twin.problem, twin.file, twin.line, twin.field) == ("it is wrong", "t.csv", 7, "id")
    assert str(twin) == str(error) == "t.csv, line 7, field id: it is wrong"


def test_a_policy_error_can_be_pickled():
    """Its one argument is its message."""
    assert str(pickle.loads(pickle.dumps(PolicyError("deadlocked")))) == "deadlocked"


def test_what_callers_may_catch():
    """Bad input is a `ValueError` for Python's users; a policy's failure is not; both are ours."""
    assert issubclass(InputError, OptimizerError)
    assert issubclass(InputError, ValueError)
    assert issubclass(PolicyError, OptimizerError)
    assert not issubclass(PolicyError, ValueError)

import pytest

from optimizer.solvers.result import Solved, Status


def solved(status, value, bound, solution, stopped_by="time"):
    return Solved(status, value, bound, solution, 1.0, stopped_by, "S 1", 0)


def test_optimal_needs_a_bound_that_meets_the_value():
    assert solved(Status.OPTIMAL, 5.0, 5.0 - 1e-9, "x", "proof").gap == pytest.approx(0, abs=1e-8)
    for bound in (4.9, None):
        with pytest.raises(ValueError, match=r"'optimal' with value 5\.0"):
            solved(Status.OPTIMAL, 5.0, bound, "x", "proof")


@pytest.mark.parametrize("status", [Status.INFEASIBLE, Status.UNKNOWN])
def test_without_a_solution_there_is_no_value(status):
    with pytest.raises(ValueError, match="with a solution"):
        solved(status, 5.0, None, "x")
    with pytest.raises(ValueError, match="a value belongs to a solution"):
        solved(status, 5.0, None, None)


def test_feasible_and_optimal_have_a_solution():
    for status in (Status.FEASIBLE, Status.OPTIMAL):
        with pytest.raises(ValueError, match="without a solution"):
            solved(status, None, None, None)


def test_a_failed_run_may_still_have_one():
    assert solved(Status.FAILED, 5.0, 4.0, "x", "error").gap == pytest.approx(0.2)
    assert solved(Status.FAILED, None, None, None, "error").gap is None


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_unknown_is_none_and_no_number(number):
    with pytest.raises(ValueError, match="unknown is None"):
        solved(Status.FEASIBLE, 5.0, number, "x")


def test_a_bound_above_the_value_is_refused():
    with pytest.raises(ValueError, match="above the value"):
        solved(Status.FEASIBLE, 5.0, 6.0, "x")

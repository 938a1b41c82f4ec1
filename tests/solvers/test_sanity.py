import time

import pytest

from optimizer.errors import OptimizerError
from optimizer.solvers import highs, sanity
from optimizer.solvers.sanity import SolverError, battery, check_battery, refuse_bad_pair


@pytest.mark.parametrize("highspy", [(1, 14, 0), (1, 15, 0), (1, 15, 1)])
@pytest.mark.parametrize("ortools", [(9, 12, 4544), (9, 15, 6755)])
def test_a_pair_that_does_not_work_is_refused_with_the_remedy(highspy, ortools):
    with pytest.raises(SolverError, match=r"install.*highspy==1\.12\.0") as refused:
        refuse_bad_pair(highspy, ortools)
    assert isinstance(refused.value, OptimizerError)
    assert ("wrong answers" in str(refused.value)) == (highspy[1] == 14)


@pytest.mark.parametrize("pair", [((1, 12, 0), (9, 15, 6755)), ((1, 15, 1), (9, 16, 0))])
def test_a_pair_that_works_is_not(pair):
    refuse_bad_pair(*pair)


def test_the_versions_are_looked_up_before_anything_is_imported(monkeypatch):
    monkeypatch.setattr(sanity, "version", {"highspy": "1.14.0", "ortools": "9.15.6755"}.__getitem__)
    with pytest.raises(SolverError, match=r"highspy 1\.14\.0 and ortools 9\.15\.6755"):
        refuse_bad_pair()


def test_a_missing_highs_says_what_to_install(monkeypatch):
    monkeypatch.setattr(sanity, "installed", lambda package: None)
    with pytest.raises(SolverError, match="highspy is not installed; install it"):
        refuse_bad_pair()


def test_a_solver_that_errs_in_one_program_is_not_trusted():
    right = {id(program): optimum for _, program, optimum in battery()}
    assert len(right) == len(battery())
    for wrong in range(len(battery())):
        answers = [optimum for _, _, optimum in battery()]
        answers[wrong] = 99999.0
        with pytest.raises(SolverError, match=r"99999\.0"):
            check_battery(lambda _program, left=answers: left.pop(0))


def test_highs_passes_and_does_it_fast():
    highs._trust()  # the import is not the battery's
    began = time.thread_time()
    check_battery(highs._optimum)
    assert time.thread_time() - began < 0.05


def test_highs_is_not_used_where_it_fails(monkeypatch):
    from optimizer.solvers.milp import run
    from optimizer.solvers.result import Status
    from tests.solvers.toys import partition

    def refuse():
        raise SolverError("not to be trusted")

    monkeypatch.setattr(highs, "_trust", refuse)
    problem, end, on = partition([5, 4], 2)
    for variable, value in zip((end, *on[0], *on[1]), (9, 1, 0, 1, 0), strict=True):
        variable.setInitialValue(value)
    done = run(problem, lambda value: value(end))
    assert (done.status, done.value, done.stopped_by) == (Status.FAILED, 9.0, "error")
    assert "not to be trusted" in done.message

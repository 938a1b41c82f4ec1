"""CP-SAT, HiGHS and CBC on programs with known optima, under limits, Ctrl-C, murder and want of memory."""

import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.solvers import cpsat, milp
from optimizer.solvers.result import Status
from tests.solvers.toys import (
    ctrl_c_after,
    kill_children,
    long_loads,
    partition,
    partition_cp,
    press_ctrl_c_once,
    pulp,
    solver_children,
)


def by_milp(loads, clients, **options):
    problem, _, on = partition(loads, clients)
    return milp.run(problem, lambda value: [[round(value(x)) for x in row] for row in on], **options)


def by_cbc(loads, clients, **options):
    return by_milp(loads, clients, engine="cbc", **options)


def by_cp(loads, clients, **options):
    model, _, on = partition_cp(loads, clients)
    return cpsat.run(model, lambda value: [[value(x) for x in row] for row in on], **options)


WAYS = {"milp": by_milp, "cbc": by_cbc, "cp": by_cp}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
streaming = pytest.mark.parametrize("way", [by_milp, by_cp], ids=["milp", "cp"])


def makespan(loads, solution):
    return max(
        sum(load * row[j] for load, row in zip(loads, solution, strict=True)) for j in range(len(solution[0]))
    )


@every_way
def test_the_optimum_of_a_packing(way):
    loads = [5, 5, 4, 4, 3, 3, 3]
    done = way(loads, 3, time_limit_s=60)
    assert (done.status, done.stopped_by) == (Status.OPTIMAL, "proof")
    assert done.value == pytest.approx(9)
    assert done.bound == pytest.approx(9)
    assert makespan(loads, done.solution) == 9


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 3))
def test_all_three_agree(loads, clients):
    answers = [way(loads, clients, time_limit_s=60) for way in WAYS.values()]
    assert {a.status for a in answers} == {Status.OPTIMAL}
    assert len({round(a.value, 6) for a in answers}) == 1
    assert all(makespan(loads, a.solution) == round(a.value) for a in answers)


@every_way
def test_a_limit_of_time_is_no_optimum(way):
    loads = long_loads()
    done = way(loads, 9, time_limit_s=2)
    assert (done.status, done.stopped_by) == (Status.FEASIBLE, "time")
    assert sum(loads) / 9 - 1 <= done.bound < done.value
    assert makespan(loads, done.solution) <= done.value + 1e-6
    assert done.seconds < 15


@pytest.mark.parametrize("engine", ["highs", "cbc"])
def test_infeasible_by_milp(engine):
    problem = pulp.LpProblem("none")
    x = problem.add_variable("x", 0, 9, cat="Integer")
    problem += 1 * x
    problem += 2 * x == 7
    done = milp.run(problem, lambda value: value(x), engine=engine)
    assert (done.status, done.value, done.solution, done.gap) == (Status.INFEASIBLE, None, None, None)


def test_infeasible_by_cp():
    model, end, _ = partition_cp([5, 5], 2)
    model.add(end <= 4)
    done = cpsat.run(model, lambda value: value(end))
    assert (done.status, done.value, done.bound) == (Status.INFEASIBLE, None, None)


def test_unbounded_is_a_failure_that_says_why():
    problem = pulp.LpProblem("endless")
    x = problem.add_variable("x", 0, cat="Integer")
    problem += -1 * x
    problem += x >= 1
    done = milp.run(problem, lambda value: value(x))
    assert done.status is Status.FAILED
    assert "give every variable that lowers the objective a limit" in done.message


def test_a_linear_program_without_integers():
    problem = pulp.LpProblem("linear")
    x = problem.add_variable("x", 0)
    problem += 2 * x + 3
    problem += 2 * x >= 7
    done = milp.run(problem, lambda value: (value(x), value(2 * x + 1)))
    assert (done.status, done.value, done.bound) == (Status.OPTIMAL, 10.0, 10.0)
    assert done.solution == (3.5, 8.0)


def test_a_model_without_objective_has_value_0():
    model, end, _ = partition_cp([5, 5], 2)
    model.clear_objective()
    model.add(end == 7)
    done = cpsat.run(model, lambda value: value(end))
    assert (done.status, done.value, done.solution) == (Status.OPTIMAL, 0.0, 7)


def test_offsets_factors_and_negations_of_a_cp_objective():
    model = cpsat.load_cp_model().CpModel()
    x, b = model.new_int_var(-5, 5, "x"), model.new_bool_var("b")
    model.minimize(-3 * x + 2 * b.negated() + 10)
    done = cpsat.run(model, lambda value: (value(x), value(b), value(b.negated()), value(2 * x - 1)))
    assert (done.status, done.value, done.bound, done.solution) == (Status.OPTIMAL, -5.0, -5.0, (5, 1, 0, 9))
    model.minimize(0.5 * x + 0.25)
    assert cpsat.run(model, lambda value: value(x)).value == -2.25


@streaming
def test_progress_is_told_and_falls(way):
    told, bounds = [], []
    loads = long_loads()
    done = way(
        loads,
        9,
        time_limit_s=60,
        on_incumbent=lambda i: told.append(i) or len(told) >= 3,
        on_bound=bounds.append,
    )
    values = [incumbent.value for incumbent in told]
    assert len(values) >= 3
    assert values == sorted(values, reverse=True)
    assert bounds == sorted(bounds)
    assert values[-1] == done.value
    assert bounds[-1] == done.bound
    assert makespan(loads, told[-1].solution) == pytest.approx(told[-1].value)


@streaming
@pytest.mark.parametrize("isolated", [False, True])
def test_a_callback_stops_it(way, isolated):
    done = way(long_loads(), 9, time_limit_s=60, on_incumbent=lambda _: True, isolated=isolated)
    assert (done.status, done.stopped_by) == (Status.FEASIBLE, "callback")
    assert done.seconds < 20


@streaming
@pytest.mark.parametrize("isolated", [False, True])
def test_ctrl_c_keeps_the_best(way, isolated):
    loads = long_loads()
    done = way(loads, 9, time_limit_s=60, isolated=isolated, on_incumbent=press_ctrl_c_once())
    assert (done.status, done.stopped_by) == (Status.FEASIBLE, "interrupted")
    assert makespan(loads, done.solution) <= done.value + 1e-6
    assert done.seconds < 20


def test_ctrl_c_makes_cbc_write_what_it_has():
    with ctrl_c_after(2):
        done = by_cbc(long_loads(), 9, time_limit_s=60)
    assert (done.status, done.stopped_by) == (Status.FEASIBLE, "interrupted")
    assert done.bound is not None
    assert done.seconds < 20


@streaming
def test_a_killed_solver_is_a_failure_with_its_best(way):
    loads = long_loads()
    done = way(loads, 9, time_limit_s=60, isolated=True, on_incumbent=kill_children)
    assert (done.status, done.stopped_by) == (Status.FAILED, "error")
    assert makespan(loads, done.solution) <= done.value + 1e-6
    assert "SIGKILL" in done.message
    assert done.seconds < 20
    assert solver_children() == []


@streaming
def test_want_of_memory_is_a_failure(way):
    done = way(long_loads(), 9, time_limit_s=20, isolated=True, memory_bytes=40_000_000)
    assert done.status is Status.FAILED
    assert "memory" in done.message
    assert done.seconds < 20


@streaming
def test_its_own_process_gives_the_same_answer(way):
    loads = [5, 5, 4, 4, 3, 3, 3]
    here, there = way(loads, 3), way(loads, 3, isolated=True)
    assert (here.status, here.value, here.bound, here.solution) == (
        there.status, there.value, there.bound, there.solution,
    )  # fmt: skip


def test_highs_starts_where_it_is_told_to():
    loads = long_loads()
    found = by_milp(loads, 9, time_limit_s=2)
    problem, end, on = partition(loads, 9)
    end.setInitialValue(found.value)
    for variables, values in zip(on, found.solution, strict=True):
        for variable, value in zip(variables, values, strict=True):
            variable.setInitialValue(value)
    told = []
    done = milp.run(problem, lambda value: value(end), on_incumbent=told.append, time_limit_s=2)
    assert told[0].value == pytest.approx(found.value)
    assert done.value <= found.value + 1e-6


def test_cp_starts_where_it_is_told_to():
    loads = long_loads()
    found = by_cp(loads, 9, time_limit_s=2)
    model, end, on = partition_cp(loads, 9)
    model.add_hint(end, int(found.value))
    for variables, values in zip(on, found.solution, strict=True):
        for variable, value in zip(variables, values, strict=True):
            model.add_hint(variable, value)
    told = []
    cpsat.run(model, lambda value: value(end), on_incumbent=told.append, time_limit_s=5)
    assert told[0].value == found.value


def test_a_complete_hint_is_an_answer_at_once():
    model, end, on = partition_cp([5, 5, 4], 2)
    model.add_hint(end, 14)
    for i, row in enumerate(on):
        for j, variable in enumerate(row):
            model.add_hint(variable, int(j == (i == 2)))
    told = []
    done = cpsat.run(
        model, lambda value: value(end), on_incumbent=lambda i: told.append(i.value) or True, time_limit_s=60
    )
    assert told[0] == 14
    assert (done.value, done.stopped_by) == (9.0, "proof") or done.stopped_by == "callback"


def test_a_hint_that_breaks_a_constraint_is_not_believed():
    model, end, on = partition_cp([5, 5, 4], 2)
    for variable in (end, *on[0], *on[1], *on[2]):
        model.add_hint(variable, 0)
    assert cpsat.run(model, lambda value: value(end)).value == 9


def test_a_start_that_breaks_the_rows_is_not_believed():
    problem, end, on = partition([5, 5, 4], 2)
    for variable in (end, *on[0], *on[1], *on[2]):
        variable.setInitialValue(0)
    assert milp.run(problem, lambda value: value(end)).value == 9


@pytest.mark.parametrize("workers", [1, 2])
def test_cp_repeats_itself_when_it_shall(workers):
    runs = [
        by_cp(long_loads(), 9, time_limit_s=0.1, deterministic=True, workers=workers, seed=4)
        for _ in range(2)
    ]
    assert runs[0].solution == runs[1].solution
    assert (runs[0].value, runs[0].bound, runs[0].stopped_by) == (runs[1].value, runs[1].bound, "time")


def test_highs_repeats_itself_under_a_limit_of_nodes():
    runs = [by_milp(long_loads(), 9, node_limit=20, seed=4) for _ in range(2)]
    assert (runs[0].status, runs[0].stopped_by) == (Status.FEASIBLE, "time")
    assert runs[0].solution == runs[1].solution
    assert runs[0].bound == runs[1].bound


def test_models_that_maximise_are_refused():
    model = cpsat.load_cp_model().CpModel()
    model.maximize(model.new_int_var(0, 1, "x"))
    with pytest.raises(InputError, match="maximises"):
        cpsat.run(model, lambda value: None)
    with pytest.raises(InputError, match="maximises"):
        milp.run(pulp.LpProblem("up", pulp.LpMaximize), lambda value: None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PuLP's own way does not let it happen
def test_two_variables_of_one_name_are_refused():
    problem = pulp.LpProblem("names")
    x, y = problem.add_variable("x", 0, 5), pulp.LpVariable("x", 0, 5)
    problem += x + y
    problem += x + y >= 7
    with pytest.raises(InputError, match="same name"):
        milp.run(problem, lambda value: None)


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"time_limit_s": -1},
        {"time_limit_s": -1, "deterministic": True},
        {"seed": -1},
        {"memory_bytes": 10**9},
    ],
)
def test_options_out_of_range_are_refused_by_cp(options):
    with pytest.raises(InputError, match=next(iter(options))):
        by_cp([1, 2], 2, **options)


@pytest.mark.parametrize(
    "options",
    [{"threads": 0}, {"time_limit_s": math.nan}, {"seed": 2**31}, {"memory_bytes": 1, "engine": "cbc"}],
)
def test_options_out_of_range_are_refused_by_milp(options):
    with pytest.raises(InputError, match=next(iter(options))):
        by_milp([1, 2], 2, **options)


def test_an_invalid_model_is_refused():
    model = cpsat.load_cp_model().CpModel()
    x = model.new_int_var(0, 2**62, "x")
    model.add(2**62 * x <= 5)
    with pytest.raises(InputError, match="invalid"):
        cpsat.run(model, lambda value: value(x))


def test_no_solver_is_imported_before_it_runs():
    code = (
        "import sys, optimizer, optimizer.solvers, optimizer.solvers.cpsat, optimizer.solvers.milp\n"
        "from optimizer.formulations import chunks, hindsight, hybrid, packing\n"
        "print([m for m in ('pulp', 'highspy', 'ortools') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"

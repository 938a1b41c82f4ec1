"""What `drive` makes of solvers that break, lie, or are stopped."""

import os
import threading
import time

import pytest

from optimizer.errors import InputError
from optimizer.solvers import drive as driving
from optimizer.solvers.drive import Asked, drive
from optimizer.solvers.result import Status
from optimizer.solvers.task import Ended, Found, Nonsense, Raised
from tests.solvers.toys import ctrl_c_after, solver_children


class Script:
    """A solver that says what it is told to say."""

    def __init__(self, *events):
        self.events = events

    def run(self, emit):
        for event in self.events:
            emit(event)

    def stop(self):
        pass


class Breaks(Script):
    def __init__(self, error, *events):
        super().__init__(*events)
        self.error = error

    def run(self, emit):
        super().run(emit)
        raise self.error


class Waits(Script):
    """Tells its events and then searches until it is stopped."""

    def __init__(self, *events):
        super().__init__(*events)
        self.stopped = threading.Event()

    def run(self, emit):
        super().run(emit)
        assert self.stopped.wait(20)
        emit(Ended("limit", None, "stopped"))

    def stop(self):
        self.stopped.set()


class Deaf(Script):
    """Tells its events and hears nothing."""

    def run(self, emit):
        super().run(emit)
        time.sleep(60)


class Dies(Script):
    """Ends its process without a word."""

    def run(self, emit):
        super().run(emit)
        os._exit(7)


def judge(values):
    if values < 3:
        raise Nonsense(f"{values} is below 3")
    return float(values)


def solve(task, known=None, **options):
    limit = options.pop("time_limit_s", None)
    return drive(task, Asked("S 1", 0, limit, judge, str, **options), known)


def test_a_proof():
    done = solve(Script(Raised(2.0), Found(5, 5.0, 2.0), Found(4, 4.0, 4.0), Ended("optimal", 4.0, "done")))
    assert (done.status, done.value, done.bound, done.solution) == (Status.OPTIMAL, 4.0, 4.0, "4")
    assert (done.stopped_by, done.gap) == ("proof", 0.0)


def test_optimal_with_a_gap_is_feasible():
    done = solve(Script(Found(5, 5.0, 4.9), Ended("optimal", 4.9, "done")))
    assert (done.status, done.bound, done.gap) == (Status.FEASIBLE, 4.9, pytest.approx(0.02))
    assert "which differ" in done.message


def test_a_limit_keeps_the_last_bound():
    done = solve(Script(Raised(2.0), Found(5, 5.0, None), Raised(3.5), Ended("limit", None, "time")))
    assert (done.status, done.value, done.bound, done.stopped_by) == (Status.FEASIBLE, 5.0, 3.5, "time")
    nothing = solve(Script(Raised(2.0), Ended("limit", None, "time")))
    assert (nothing.status, nothing.value, nothing.bound) == (Status.UNKNOWN, None, 2.0)


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ([Found(2, 2.0, None), Ended("optimal", 2.0, "")], "2 is below 3"),
        ([Found(5, 4.0, None), Ended("optimal", 4.0, "")], "called one of value 4.0"),
        ([Ended("optimal", 4.0, "")], "shows no solution"),
        ([Found(5, 5.0, None), Ended("infeasible", None, "")], "beside a solution"),
        ([Found(5, 5.0, None), Ended("limit", 6.0, "")], "above a solution's value"),
        ([Found(5, 5.0, 6.0), Ended("optimal", 5.0, "")], "above a solution's value"),
    ],
)
def test_nonsense_is_never_an_answer(events, why):
    done = solve(Script(*events))
    assert (done.status, done.bound, done.stopped_by) == (Status.FAILED, None, "error")
    assert why in done.message


def test_what_was_sound_before_the_nonsense_is_kept():
    done = solve(Script(Found(7, 7.0, 1.0), Found(2, 2.0, 1.0), Ended("optimal", 2.0, "")))
    assert (done.status, done.value, done.solution, done.bound) == (Status.FAILED, 7.0, "7", None)


@pytest.mark.parametrize(
    ("error", "word"), [(MemoryError(), "out of memory"), (RuntimeError("no cigar"), "no cigar")]
)
def test_a_broken_solver_leaves_its_incumbent(error, word):
    done = solve(Breaks(error, Found(5, 5.0, 4.0)))
    assert (done.status, done.value, done.bound) == (Status.FAILED, 5.0, 4.0)
    assert word in done.message


def test_a_process_that_dies_leaves_its_incumbent():
    done = solve(Dies(Found(5, 5.0, 4.0)), isolated=True)
    assert (done.status, done.value, done.bound) == (Status.FAILED, 5.0, 4.0)
    assert "exit code 7" in done.message


@pytest.mark.parametrize(("why", "grace"), [("time", 4.0), ("callback", 0.3)])
def test_a_process_that_does_not_stop_is_killed(why, grace, monkeypatch):
    monkeypatch.setattr(driving, "_GRACE_S", grace)
    options = {"time_limit_s": 0.5} if why == "time" else {"on_incumbent": lambda _: True}
    done = solve(Deaf(Found(5, 5.0, 4.0)), isolated=True, **options)
    assert (done.status, done.value, done.bound, done.stopped_by) == (Status.FEASIBLE, 5.0, 4.0, why)
    assert "killed" in done.message
    assert done.seconds < 20
    assert solver_children() == []


def test_a_second_ctrl_c_is_raised():
    task = Waits(Found(5, 5.0, 4.0))
    task.stop = lambda: None
    try:
        with ctrl_c_after(0.3), ctrl_c_after(0.8), pytest.raises(KeyboardInterrupt):
            solve(task)
    finally:
        task.stopped.set()


def test_callbacks_hear_everything_and_may_stop():
    heard = []
    task = Waits(Raised(1.0), Found(9, 9.0, 1.0), Raised(2.0), Found(8, 8.0, 2.0))
    done = solve(
        task,
        on_incumbent=lambda i: heard.append((i.value, i.bound, i.solution)) or i.value < 9,
        on_bound=lambda b: heard.append(b),
    )
    assert heard == [1.0, (9.0, 1.0, "9"), 2.0, (8.0, 2.0, "8")]
    assert (done.status, done.value, done.stopped_by) == (Status.FEASIBLE, 8.0, "callback")


def test_a_bound_may_stop_it_too():
    done = solve(Waits(Found(9, 9.0, 8.9)), on_bound=lambda b: b > 8)
    assert (done.status, done.stopped_by, done.bound) == (Status.FEASIBLE, "callback", 8.9)


def test_a_worse_solution_is_no_incumbent():
    heard = []
    solve(
        Script(Found(5, 5.0, 1.0), Found(6, 6.0, 1.0), Found(5, 5.0, 1.0), Ended("limit", None, "")),
        on_incumbent=lambda i: heard.append(i.value),
    )
    assert heard == [5.0]


def test_a_known_solution_is_the_first_incumbent_and_the_least_answer():
    assert solve(Script(Ended("limit", None, "")), known=5).value == 5.0
    assert solve(Script(Found(6, 6.0, None), Ended("limit", None, "")), known=5).value == 5.0
    assert solve(Script(Ended("limit", None, "")), known=2).status is Status.UNKNOWN


def test_a_known_solution_may_be_enough():
    done = solve(Waits(), known=5, on_incumbent=lambda i: True)
    assert (done.status, done.value, done.stopped_by) == (Status.FEASIBLE, 5.0, "callback")


def test_what_a_callback_raises_comes_through_and_stops_the_solver():
    task = Waits(Found(9, 9.0, 1.0))

    def refuse(_):
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        solve(task, on_incumbent=refuse)
    assert task.stopped.is_set()


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(InputError, match="time_limit_s"):
        Asked("S 1", 0, limit, judge, str)


def test_a_seed_out_of_range_is_refused():
    with pytest.raises(InputError, match="seed"):
        Asked("S 1", -1, None, judge, str)

"""The solver's process: what comes back is used, and whatever else it does, the loop goes on."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from itertools import pairwise

import pytest

from optimizer.online import Request, RollingHorizon
from optimizer.online.background import ProcessPlanner
from optimizer.online.plan import WindowPlan
from optimizer.online.window import Effort
from tests.online.double import toy_engine

OPTIONS = {"objective": "latency", "window_s": 5.0}
_READ = "import sys, os, json, struct, time\n"


def planner_of(program=None, *, patience_s=20.0, clock=time.monotonic):
    """A planner, with a process of the test's own in place of the solver."""
    command = {} if program is None else {"command": (sys.executable, "-c", _READ + textwrap.dedent(program))}
    return ProcessPlanner(
        toy_engine(), OPTIONS, effort=Effort(0.1), every_s=0.0, patience_s=patience_s, clock=clock, **command
    )


def loop(horizon, until, seconds=40.0):
    """Go on stepping in real time until something is so; no call may take long, whatever the solver does."""
    began = time.monotonic()
    number = 0
    while not until():
        now = time.monotonic() - began
        assert now < seconds, f"it never happened; {horizon.stats().solver}"
        while horizon.load()[0] < 6:
            horizon.submit(Request(f"r{number}", 4, 3, predicted_tokens=float(number % 7)), now)
            number += 1
        spent = time.thread_time()
        step = horizon.next_step(now)
        assert time.thread_time() - spent < 0.05
        horizon.observe(step, now)
        time.sleep(0.002)


def ends(pid, seconds=10.0):
    """Wait for a process to be gone, or a zombie that nobody has waited for yet."""
    for _ in range(int(seconds / 0.05)):
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.long
def test_plans_come_from_another_process_and_it_ends_with_the_loop():
    planner = planner_of()
    with RollingHorizon(toy_engine(), solver=planner) as horizon:
        loop(horizon, lambda: horizon.stats().counts.plans >= 3)
        pid = planner._child.pid
        assert os.getpriority(os.PRIO_PROCESS, pid) >= 10
        assert horizon.stats().counts.steps["plan"] > 0
        assert horizon.stats().solver.mean_s > 0
    assert ends(pid)
    assert not horizon.next_step(1e6)


@pytest.mark.long
def test_a_horizon_that_is_dropped_takes_its_process_along():
    def used():
        planner = planner_of()
        horizon = RollingHorizon(toy_engine(), solver=planner)
        loop(horizon, lambda: planner.stats().answers >= 1)
        return planner._child.pid

    pid = used()
    gc.collect()
    assert ends(pid)


@pytest.mark.long
def test_a_killed_solver_is_started_anew():
    planner = planner_of()
    with RollingHorizon(toy_engine(), solver=planner) as horizon:
        loop(horizon, lambda: horizon.stats().counts.plans >= 1)
        os.kill(planner._child.pid, signal.SIGKILL)
        loop(horizon, lambda: horizon.stats().solver.deaths == 1)
        seen = horizon.stats().counts.plans
        loop(horizon, lambda: horizon.stats().counts.plans > seen)
        assert horizon.stats().solver.deaths == 1


@pytest.mark.long
def test_a_stopped_solver_is_killed_and_started_anew():
    planner = planner_of(patience_s=0.5)
    with RollingHorizon(toy_engine(), solver=planner) as horizon:
        loop(horizon, lambda: horizon.stats().counts.plans >= 1)
        pid = planner._child.pid
        os.kill(pid, signal.SIGSTOP)
        loop(horizon, lambda: horizon.stats().solver.hangs == 1)
        assert ends(pid)
        seen = horizon.stats().counts.plans
        loop(horizon, lambda: horizon.stats().counts.plans > seen)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def sick(program, what, times=3):
    """Let a process be sick again and again; give the moments at which it was started."""
    clock = Clock()
    planner = planner_of(program, patience_s=1.0, clock=clock)
    starts = []
    launch = planner._launch
    planner._launch = lambda: (starts.append(clock.now), launch())
    with RollingHorizon(toy_engine(), solver=planner) as horizon:
        # A minute of the clock goes by in a second.
        loop(
            horizon,
            lambda: setattr(clock, "now", clock.now + 0.2) or getattr(horizon.stats().solver, what) >= times,
        )
        counts = horizon.stats().counts
        assert counts.plans == 0
        assert set(counts.steps) <= {"heuristic", "idle"}
        assert counts.rule_errors == 0
    return starts


def test_a_process_that_dies_is_started_ever_later():
    starts = sick("sys.exit(3)", "deaths", times=4)
    gaps = [b - a for a, b in pairwise(starts)]
    assert all(gap >= least for gap, least in zip(gaps, (1.0, 2.0, 4.0), strict=False))


def test_a_process_that_says_nothing_is_killed():
    sick("time.sleep(600)", "hangs", times=1)


@pytest.mark.parametrize(
    "answer",
    [
        b"Traceback (most recent call last):\n",
        b"\xff\xff\xff\xff and much more",
        b"\x00\x00\x00\x05{nope",
        b"\x00\x00\x00\x02[]",
        b"\x00\x00\x00\x04null",
    ],
)
def test_garbage_is_not_believed(answer):
    sick(f"sys.stdin.buffer.read(100); os.write(1, {answer!r}); time.sleep(600)", "garbage", times=1)


GOOD = WindowPlan.from_document({
    "order": [0, 1], "start_s": [0.0, 0.1], "price": 0.0, "chunk_tokens": None, "mode": "auto",
    "made_s": 0.0, "value": 1.0, "heuristic_value": 2.0, "seconds": 0.1, "by": "test",
}).to_document()  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"order": [1, 1]},
        {"order": [-1, 0]},
        {"order": [True, 2]},
        {"order": "01"},
        {"order": None},
        {"start_s": [0.0]},
        {"start_s": [0.0, float("nan")]},
        {"price": -1.0},
        {"price": float("inf")},
        {"price": "1"},
        {"chunk_tokens": 0},
        {"chunk_tokens": 1.5},
        {"mode": "both"},
        {"made_s": None},
        {"value": float("nan")},
        {"seconds": True},
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(change):
    from optimizer.errors import InputError

    text = json.dumps(GOOD | change)
    with pytest.raises(InputError, match="no plan"):
        WindowPlan.from_document(json.loads(text))


def test_a_plan_survives_the_pipe():
    plan = WindowPlan.from_document(GOOD)
    assert WindowPlan.from_document(json.loads(json.dumps(plan.to_document()))) == plan


PARENT = """
import os, sys, time
from optimizer.online import Request, RollingHorizon
from optimizer.online.background import ProcessPlanner
from optimizer.online.window import Effort
from tests.online.double import toy_engine

planner = ProcessPlanner(toy_engine(), {options}, effort=Effort(0.1), every_s=0.0)
horizon = RollingHorizon(toy_engine(), solver=planner)
for i in range(50):
    horizon.submit(Request(str(i), 4, 30), 0.0)
began = time.monotonic()
while not planner._answers:
    now = time.monotonic() - began
    horizon.observe(horizon.next_step(now), now)
    time.sleep(0.002)
print(planner._child.pid, flush=True)
{end}
"""


@pytest.mark.long
@pytest.mark.parametrize("end", ["pass", "time.sleep(600)"])
def test_no_process_outlives_its_parent(end):
    """At the end of the interpreter, without a word of `close`; and when the parent is killed."""
    program = PARENT.format(options=OPTIONS, end=end)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    if end == "pass":
        assert parent.wait(timeout=20) == 0
    else:
        parent.kill()
        parent.wait()
    parent.stdout.close()
    assert ends(pid)

"""Models with known optima, a model that takes long, and what tests do to solvers."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

from ortools.sat.python import cp_model

from optimizer.solvers.milp import load_pulp

pulp = load_pulp()


def partition(loads, clients):
    """PuLP: the makespan of loads on clients; hard to prove for a few dozen."""
    problem = pulp.LpProblem("partition")
    end = problem.add_variable("end", 0)
    on = [
        [problem.add_variable(f"on_{i}_{j}", cat="Binary") for j in range(clients)] for i in range(len(loads))
    ]
    problem += 1 * end
    for i in range(len(loads)):
        problem += pulp.lpSum(on[i]) == 1
    for j in range(clients):
        problem += pulp.lpSum(load * on[i][j] for i, load in enumerate(loads)) <= end
    return problem, end, on


def partition_cp(loads, clients):
    """The same in CP-SAT."""
    model = cp_model.CpModel()
    end = model.new_int_var(0, sum(loads), "end")
    on = [[model.new_bool_var(f"on_{i}_{j}") for j in range(clients)] for i in range(len(loads))]
    for row in on:
        model.add_exactly_one(row)
    for j in range(clients):
        model.add(cp_model.LinearExpr.weighted_sum([row[j] for row in on], loads) <= end)
    model.minimize(end)
    return model, end, on


def long_loads(n=40, seed=3):
    """Loads whose partition onto 9 clients no solver proves in a second."""
    rng = random.Random(seed)
    return [rng.randint(1000, 9999) for _ in range(n)]


def solver_children():
    """The processes of isolated solvers that this process has started."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            command = stat.with_name("cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == os.getpid() and b"optimizer.solvers.child" in command:
            found.append(int(stat.parent.name))
    return found


def kill_children(_incumbent):
    """Kill them, as the system does for want of memory."""
    for pid in solver_children():
        os.kill(pid, signal.SIGKILL)


def press_ctrl_c_once():
    """Give a callback that presses Ctrl-C when it is first called."""
    pressed = []

    def press(_incumbent):
        if not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    return press


@contextmanager
def ctrl_c_after(seconds):
    """Press Ctrl-C a little later."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()

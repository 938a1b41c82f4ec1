"""The window as KV ramps: who starts when, by CP-SAT or by a time-indexed MILP; running requests are where they are.

A round here is several decode steps, and a unit of memory is as many tokens: requests grow by a unit a round, as ramps do
(`optimizer.problem.ramps`), in a model that is so many times smaller. Sizes are rounded up and the capacity down.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from optimizer.online.rollout import Rollouts, Row
from optimizer.problem.columns import Ints
from optimizer.problem.engine import Engine
from optimizer.problem.ramps import Ramps
from optimizer.solvers.ramp_greedy import greedy

_MOST_ROUNDS = 40
"""Rounds of the longest request."""
_MOST_WAITING = 64
"""Waiting requests in a model; those behind them keep their order."""


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A window in rounds.

    Attributes
    ----------
    ramps
        Running requests first, then those that wait.
    running
        How many run: they start in round 0.
    waiting
        Those that wait, in the order of `ramps`.
    known
        Starting rounds to begin with.
    """

    ramps: Ramps
    running: int
    waiting: tuple[Row, ...]
    known: Ints

    @classmethod
    def of(cls, rollouts: Rollouts, engine: Engine, order: list[int]) -> Window | None:
        """Read a moment; None where nothing is to decide, or where those that run do not fit as they are expected to.

        Parameters
        ----------
        order
            Waiting requests by serial: the warm start is the greedy schedule in this order.
        """
        place = {serial: i for i, serial in enumerate(order)}
        first = sorted(rollouts.waiting, key=lambda row: place.get(row.serial, len(place)))[:_MOST_WAITING]
        if len(first) < 2:
            return None
        rows = [*rollouts.running, *first]
        left = [rollouts.remaining(row) for row in rows]
        grain = -(-max(left) // _MOST_ROUNDS)
        capacity = engine.kv_tokens // grain
        rounds = np.array([-(-tokens // grain) for tokens in left], np.int64)
        prompt = np.array([-(-row.known // grain) for row in rows], np.int64)
        # Nobody holds more than there is, whatever is expected of it.
        prompt = np.maximum(1, np.minimum(prompt, capacity - rounds + 1))
        n = len(rollouts.running)
        weight = [row.weight for row in rows]
        ramps = Ramps.of(prompt, rounds, capacity=capacity, weight=weight, seats=engine.max_num_seqs)
        if (ramps.peak > capacity).any():
            return None
        known = greedy(ramps, np.arange(len(rows)))
        if known[:n].any():
            return None
        return cls(ramps, n, tuple(first), known)

    def order(self, start: Ints) -> list[int]:
        """Give those that wait by their starts; at equal starts the shortest first."""
        own, rounds = start[self.running :].tolist(), self.ramps.rounds[self.running :].tolist()
        ranked = sorted(range(len(own)), key=lambda i: (own[i], rounds[i], i))
        return [self.waiting[i].serial for i in ranked]


def by_cp_sat(
    window: Window, objective: str, *, time_limit_s: float, seed: int, deterministic: bool
) -> list[int] | None:
    """Order those that wait by CP-SAT; None: it found nothing in time."""
    from optimizer.formulations import ramps as model
    from optimizer.solvers import cpsat

    built = model.build(
        window.ramps,
        objective="makespan" if objective == "throughput" else "latency",
        known=window.known,
        fixed=dict.fromkeys(range(window.running), 0),
    )
    done = cpsat.run(
        built.model, built.read, time_limit_s=time_limit_s, workers=1, seed=seed, deterministic=deterministic
    )
    return None if done.solution is None else window.order(done.solution)


def by_milp(
    window: Window, objective: str, *, time_limit_s: float, seed: int, deterministic: bool
) -> list[int] | None:
    """Order those that wait by a time-indexed program (x_it: request i starts in round t); None: nothing in time.

    min sum_it w_i (t + o_i) x_it,  sum_t x_it = 1,  KV and seats in every round within what those that run leave.
    """
    from optimizer.solvers import milp

    pulp = milp.load_pulp()
    ramps, n = window.ramps, window.running
    rows = range(n, len(ramps))
    prompt, rounds = ramps.prompt.tolist(), ramps.rounds.tolist()
    last = int(window.known.max())
    horizon = last + max(rounds) + 1
    used, seated = np.zeros(horizon, np.int64), np.zeros(horizon, np.int64)
    for i in range(n):
        used[: rounds[i]] += prompt[i] + np.arange(rounds[i])
        seated[: rounds[i]] += 1
    problem = pulp.LpProblem("window")
    x = {i: [problem.add_variable(f"x_{i}_{t}", 0, 1, cat="Integer") for t in range(last + 1)] for i in rows}
    for i in rows:
        for t, variable in enumerate(x[i]):
            variable.setInitialValue(int(window.known[i] == t))
    # To end early together is to end early each: the same objective serves throughput, by size.
    weight = [
        float(rounds[i]) if objective == "throughput" else float(ramps.weight[i]) for i in range(len(ramps))
    ]
    problem += (
        pulp.LpAffineExpression([(v, weight[i] * (t + rounds[i])) for i in rows for t, v in enumerate(x[i])]),
        "latency",
    )
    blocks: list[list[tuple[object, int]]] = [[] for _ in range(horizon)]
    for i in rows:
        problem += pulp.lpSum(x[i]) == 1, f"starts_once_{i}"
        for t, variable in enumerate(x[i]):
            for j in range(rounds[i]):
                blocks[t + j].append((variable, prompt[i] + j))
    for t, terms in enumerate(blocks):
        if terms:
            problem += pulp.LpAffineExpression(terms) <= ramps.capacity - int(used[t]), f"memory_{t}"
            problem += pulp.lpSum(v for v, _ in terms) <= ramps.seats - int(seated[t]), f"seats_{t}"

    def read(value: milp.MilpValues) -> Ints:
        start = np.zeros(len(ramps), np.int64)
        for i in rows:
            start[i] = next(t for t, variable in enumerate(x[i]) if value(variable) > 0.5)
        return start

    if deterministic:
        done = milp.run(problem, read, seed=seed, node_limit=20)
    else:
        done = milp.run(problem, read, seed=seed, time_limit_s=time_limit_s)
    return None if done.solution is None else window.order(done.solution)

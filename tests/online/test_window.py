"""Windows: rollouts that are what the loop does, and plans that are no worse than the heuristic."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.online import Request, RollingHorizon
from optimizer.online.ahead import Run
from optimizer.online.knobs import Knobs, Levels
from optimizer.online.plan import MOST_PLANNED
from optimizer.online.rollout import Rollouts, Scenario
from optimizer.online.simulated import SimulatedEngine
from optimizer.online.snapshot import snapshot
from optimizer.online.window import Effort, solve
from optimizer.online.window_models import Window, by_cp_sat, by_milp
from optimizer.solvers.ramp_greedy import greedy
from tests.online.double import toy_engine

OPTIONS = {"objective": "latency"}
SURE = {"log_sigma": 0.0}
Lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=2, max_size=10)


def waiting(lengths, objective="latency", steps=0, guesses=None, cached=(0,), **engine):
    """A horizon some steps on, and its engine; lengths are known unless guesses are given."""
    horizon = RollingHorizon(toy_engine(**engine), objective, solver=None)
    simulated = SimulatedEngine(horizon.engine)
    for i, (prompt, output) in enumerate(lengths):
        guess = float(output) if guesses is None else guesses[i]
        sure = SURE if guesses is None else {"log_sigma": 0.5}
        held = {"cached_tokens": cached[i % len(cached)]}
        horizon.submit(Request(f"{i}", prompt, 60, predicted_tokens=guess, **sure, **held), 0.0)
        simulated.add(f"{i}", prompt, output, **held)
    now = 0.0
    for _ in range(steps):
        step = horizon.next_step(now)
        if step:
            took, finished = simulated.execute(step)
            now += took
            horizon.observe(step, now, finished)
    return horizon, simulated, now


def seen_of(horizon, now, plan=None):
    return snapshot(
        horizon.loop.state,
        horizon.loop.order,
        horizon.loop.rule,
        horizon.loop.advice.arrivals,
        now,
        1.0,
        plan,
    )


@settings(max_examples=40, deadline=None)
@given(Lengths, st.integers(0, 25), st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_a_rollout_is_what_the_loop_then_does(lengths, steps, cached):
    """With lengths known, and memory for all: the same steps, so the same sum of latencies."""
    horizon, simulated, now = waiting(lengths, steps=steps, cached=cached, kv_blocks=500)
    seen = seen_of(horizon, now) | {"rate": 0.0}
    rollouts = Rollouts(horizon.engine, "latency", seen, Levels(), scenarios=1)
    rollouts._chosen_by = [Scenario({i: output for i, (_, output) in enumerate(lengths)}, ())]
    expected = rollouts.value((), Knobs())
    total = 0.0
    while horizon.loop.state.entries:
        step = horizon.next_step(now)
        took, finished = simulated.execute(step)
        now += took
        total += now * len(horizon.observe(step, now, finished))
    assert expected == pytest.approx(total, rel=0.02, abs=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    Lengths,
    st.integers(0, 25),
    st.integers(16, 60),
    st.sampled_from(["latency", "throughput", "goodput", "fair"]),
)
def test_a_plan_is_no_worse_than_the_heuristic_and_names_who_waits(lengths, steps, blocks, objective):
    horizon, _, now = waiting(lengths, objective, steps=steps, kv_blocks=blocks, guesses=[9.0] * len(lengths))
    seen = json.loads(json.dumps(seen_of(horizon, now)))
    effort = Effort(0.2, evaluations=12, method="search")
    plan = solve(seen, horizon.engine, OPTIONS | {"objective": objective}, effort)
    assert plan.value <= plan.heuristic_value
    there = {row[0] for row in seen["waiting"]}
    assert set(plan.order) <= there
    assert all(start >= now for start in plan.start_s)


@pytest.mark.parametrize("method", ["cp-sat", "milp", "search"])
def test_solves_of_fixed_effort_repeat_themselves(method):
    rng = np.random.default_rng(0)
    lengths = [(int(p), int(o)) for p, o in rng.integers(2, 30, (10, 2))]
    horizon, _, now = waiting(lengths, kv_blocks=20, guesses=[12.0] * 10)
    effort = Effort(0.4, evaluations=20, method=method)
    seen = seen_of(horizon, now)
    assert len(seen["waiting"]) >= 8, "enough for a model"
    plans = [solve(seen, horizon.engine, OPTIONS, effort, seed=3) for _ in range(2)]
    first, second = ({**p.to_document(), "seconds": 0.0} for p in plans)
    assert first == second


def test_a_plan_finds_what_the_rule_does_not_see():
    """The rule counts the engine's time: by it the long prompts come last. But memory is what is scarce, and long prompts with
    little output give it back soon."""
    horizon, _, now = waiting([(4, 28)] * 6 + [(30, 2)] * 4, kv_blocks=24, max_num_seqs=10)
    seen = seen_of(horizon, now) | {"rate": 0.0}
    plan = solve(seen, horizon.engine, OPTIONS, Effort(evaluations=40, method="search"))
    assert plan.value < 0.97 * plan.heuristic_value
    assert plan.by != "heuristic"


def test_a_plan_does_not_buy_the_mean_from_the_last_percent():
    """To serve the many short ones before the long ones is best for the mean, and too late for the long ones."""
    horizon = RollingHorizon(toy_engine(kv_blocks=200), patience_s=0.0, solver=None)
    for i in range(23):
        late = i >= 3
        horizon.submit(Request(f"{i}", 6 if late else 60, 60, predicted_tokens=5.0, **SURE), float(late))
    seen = seen_of(horizon, 1.0) | {"rate": 0.0}
    rollouts = Rollouts(horizon.engine, "latency", seen, Levels(patience_s=0.0), scenarios=1)
    shortest = tuple(row.serial for row in sorted(rollouts.waiting, key=lambda row: row.prompt))
    longest = rollouts.longest_wait_s(rollouts._chosen_by[0])
    run = Run(rollouts, Knobs(), shortest, rollouts._chosen_by[0])
    assert run.longest_wait_s() > longest
    without = run.value() - len(shortest) * (run.longest_wait_s() - longest)
    assert without < rollouts.value((), Knobs()) < run.value()


def window_of(lengths, **engine):
    horizon, _, now = waiting(lengths, **({"kv_blocks": 16, "max_num_seqs": 10, "steps": 3} | engine))
    rollouts = Rollouts(horizon.engine, "latency", seen_of(horizon, now), Levels())
    order = [row.serial for row in rollouts.waiting]
    return Window.of(rollouts, horizon.engine, order)


@pytest.mark.parametrize("solver", [by_cp_sat, by_milp])
def test_models_order_no_worse_than_they_were_started(solver):
    rng = np.random.default_rng(1)
    window = window_of([(int(p), int(o)) for p, o in rng.integers(2, 28, (12, 2))])
    assert window.running > 0
    order = solver(window, "latency", time_limit_s=1.0, seed=0, deterministic=False)
    assert sorted(order) == sorted(row.serial for row in window.waiting)
    place = {row.serial: window.running + i for i, row in enumerate(window.waiting)}
    ramps = window.ramps
    start = greedy(ramps, np.array([*range(window.running), *(place[s] for s in order)]))
    assert not start[: window.running].any(), "those that run go on"
    assert ramps.total_completion(start) <= ramps.total_completion(window.known)


def test_both_models_agree_on_the_optimum():
    window = window_of([(3, 20), (9, 5), (20, 9), (2, 30), (28, 3), (12, 12)], steps=2, max_num_seqs=3)
    ramps, n = window.ramps, window.running
    place = {row.serial: n + i for i, row in enumerate(window.waiting)}
    values = set()
    for solver in (by_cp_sat, by_milp):
        order = solver(window, "latency", time_limit_s=20.0, seed=0, deterministic=False)
        start = greedy(ramps, np.array([*range(n), *(place[s] for s in order)]))
        values.add(ramps.total_completion(start))
    assert len(values) == 1


def test_a_snapshot_shows_the_next_in_line():
    horizon, _, now = waiting([(3, 5)] * (MOST_PLANNED + 40), steps=3)
    seen = seen_of(horizon, now)
    assert len(seen["waiting"]) == MOST_PLANNED
    assert len(seen["running"]) == horizon.stats().running


def test_a_window_without_a_choice_has_no_model():
    assert window_of([(3, 5), (4, 5)], steps=0, max_num_seqs=1) is not None
    assert window_of([(3, 5), (4, 5)], steps=1) is None


def test_methods_have_names():
    with pytest.raises(InputError, match="cp-sat, milp or search"):
        Effort(method="magic")

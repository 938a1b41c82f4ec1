"""The online loop in the simulator: schedules that the checker accepts, and plans that come as late as they took."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.capacity import engine as engine_of
from optimizer.check import check
from optimizer.errors import InputError
from optimizer.online.knobs import Knobs
from optimizer.online.plan import WindowPlan
from optimizer.online.policy import RollingHorizonPolicy
from optimizer.online.virtual import VirtualPlanner
from optimizer.online.window import Effort
from optimizer.policies import Policy, register
from optimizer.problem import Engine, Instance, PrefixHashes, Requests, StepTime, with_knowledge
from optimizer.simulator import simulate
from optimizer.traces import generate
from tests.online.double import toy_engine

STEP = StepTime.affine(
    base_s=0.004, per_prefill_token_s=2e-5, per_decode_seq_s=2e-5, per_decode_context_s=1e-8
)


@st.composite
def instances(draw):
    n = draw(st.integers(1, 12))
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    prompts = draw(st.lists(st.integers(1, 60), min_size=n, max_size=n))
    outputs = draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))
    gaps = draw(st.lists(st.sampled_from([0, 0, 1, 4, 33]), min_size=n, max_size=n))
    prefix = None
    if draw(st.booleans()):
        families = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
        ids = [
            [f * 1000 + i for i in range(p // block_tokens)] for f, p in zip(families, prompts, strict=True)
        ]
        starts = np.cumsum([0, *map(len, ids)])
        prefix = PrefixHashes(np.array([i for row in ids for i in row], dtype=np.int64), starts, block_tokens)
    columns = {"arrival_s": np.cumsum(gaps) / 1000, "prompt_tokens": prompts, "output_tokens": outputs}
    longest = max(-(-(p + o) // block_tokens) for p, o in zip(prompts, outputs, strict=True))
    engine = Engine(
        name="toy",
        kv_blocks=longest + draw(st.sampled_from([1, 5, 20, 1000])),
        block_tokens=block_tokens,
        max_num_batched_tokens=draw(st.sampled_from([8, 32, 512])),
        max_num_seqs=draw(st.integers(1, 8)),
        prefix_caching=prefix is not None,
        async_scheduling=draw(st.booleans()),
        step_time=STEP,
    )
    requests = Requests.from_columns(columns, prefix=prefix)
    return Instance(
        "drawn",
        with_knowledge(requests, draw(st.sampled_from(["exact", "none", "noise:0.5"])), seed=n),
        engine,
    )


@settings(max_examples=120, deadline=None)
@given(instances(), st.sampled_from(["latency", "throughput", "goodput", "fair"]))
def test_schedules_keep_the_rules(instance, objective):
    policy = RollingHorizonPolicy(objective=objective, solver="none")
    simulation = simulate(instance, policy)
    assert np.isfinite(simulation.metrics.finish_s).all()
    report = check(simulation.schedule, instance)
    assert report.ok, str(report)
    stats = policy.horizon.stats()
    # Of the very last steps nobody asks any more.
    assert stats.waiting == 0
    assert stats.counts.finished + stats.running == len(instance.requests)
    faults = stats.counts
    assert not faults.rule_errors + faults.unknown_ids + faults.repeated_reports + faults.clock_jumps


@settings(max_examples=25, deadline=None)
@given(instances())
def test_both_modes_of_the_simulator_agree(instance):
    fast, slow = (
        simulate(instance, RollingHorizonPolicy(solver="none"), step_by_step=step_by_step)
        for step_by_step in (False, True)
    )
    assert (fast.schedule.finish_s == slow.schedule.finish_s).all()


def waiting_instance(n=40):
    rng = np.random.default_rng(0)
    columns = {"prompt_tokens": rng.integers(5, 60, n), "output_tokens": rng.integers(5, 60, n)}
    engine = toy_engine(kv_blocks=120, block_tokens=4, max_num_batched_tokens=64, max_num_seqs=12)
    return Instance("w", with_knowledge(Requests.from_columns(columns), "noise:0.5", seed=1), engine)


def test_runs_with_a_given_delay_repeat_themselves():
    instance = waiting_instance()
    runs = []
    for _ in range(2):
        policy = RollingHorizonPolicy(solver="search", delay_s=0.2, every_s=0.4, evaluations=6)
        runs.append(simulate(instance, policy, seed=5))
        assert policy.horizon.stats().counts.plans > 1
        assert check(runs[-1].schedule, instance).ok
    assert (runs[0].schedule.finish_s == runs[1].schedule.finish_s).all()


@pytest.mark.parametrize("delay_s", [0.05, 1.0])
def test_a_plan_comes_as_late_as_its_solve_took(delay_s):
    """Who decided each step says when the first plan was there."""
    policy = RollingHorizonPolicy(
        solver="search", delay_s=delay_s, every_s=100.0, window_s=0.4, evaluations=8
    )
    seen = []
    begin = policy.start

    def start(state):
        begin(state)
        consult = policy.horizon.loop.advice.consult
        policy.horizon.loop.advice.consult = lambda now, factor: (
            seen.append((now, consult(now, factor))) or seen[-1][1]
        )

    policy.start = start
    simulate(waiting_instance(), policy)
    first = next((now for now, source in seen if source != "heuristic"), None)
    if delay_s < 0.4:
        assert first == pytest.approx(delay_s, abs=0.03)
        assert next(now for now, source in seen if source == "stale-plan") == pytest.approx(0.4, abs=0.03)
    else:
        assert first is None, "it was of no use any more"
        assert policy.horizon.stats().counts.plans_refused == 1


def test_a_solve_that_is_timed_is_as_late_as_it_really_was(monkeypatch):
    plan = WindowPlan((), (), Knobs(), 0.0, 1.0, 1.0, 0.7, "heuristic")
    monkeypatch.setattr("optimizer.online.virtual.solve", lambda *arguments: plan)
    planner = VirtualPlanner(toy_engine(), {}, Effort(), every_s=0.1)
    assert planner.wants(0.0)
    planner.post({}, 0.0)
    assert planner.poll(0.69) is None
    assert not planner.wants(0.69)
    assert planner.poll(0.71) is plan
    assert planner.poll(0.72) is None
    assert planner.wants(0.72)


def test_it_is_found_by_name_and_imported_only_then():
    """Whoever names another policy does not load the online loop; a name that is taken stays taken."""
    program = """
import sys
from optimizer.policies import make_policy, policy_names
make_policy("vllm-v1")
assert "rolling-horizon" in policy_names()
assert not [name for name in sys.modules if name.startswith("optimizer.online")]
assert make_policy("rolling-horizon", window_s="3").window_s == 3.0
assert "optimizer.online.policy" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)

    @dataclass
    class Other(Policy):
        """Another."""

    with pytest.raises(ValueError, match="two policies"):
        register("rolling-horizon")(Other)


def test_the_solver_pays_where_memory_is_scarce():
    """By the engine's time the long prompts with hardly any output come last; but they give their KV back soon."""
    columns = {"prompt_tokens": [4] * 24 + [60] * 16, "output_tokens": [40] * 24 + [2] * 16}
    engine = toy_engine(kv_blocks=60, block_tokens=4, max_num_batched_tokens=64, max_num_seqs=10)
    instance = Instance("w", with_knowledge(Requests.from_columns(columns), "exact", seed=1), engine)
    alone, solved = (
        simulate(instance, RollingHorizonPolicy(solver=solver, every_s=0.3, delay_s=0.05)).metrics
        for solver in ("none", "cp-sat")
    )
    assert solved.e2e_s.mean() < 0.98 * alone.e2e_s.mean()
    assert solved.ttft_s.max() < 1.02 * alone.ttft_s.max()


def test_what_the_cache_holds_is_used_where_prefixes_are_shared():
    requests = with_knowledge(generate("shared-prefix", 800, 0, rate=60.0), "exact")
    instance = Instance("chats", requests, engine_of("llama3.1-8b@h200", prefix_caching=True))
    ours = simulate(instance, RollingHorizonPolicy(solver="none")).metrics
    served = simulate(instance, "vllm-v1").metrics
    assert ours.e2e_s.mean() < served.e2e_s.mean()


@pytest.mark.parametrize(
    ("option", "value"), [("solver", "magic"), ("delay_s", -1.0), ("objective", "speed"), ("exempt", 0.9)]
)
def test_options_out_of_range_are_refused(option, value):
    with pytest.raises(InputError, match="expected"):
        simulate(waiting_instance(4), RollingHorizonPolicy(**{option: value}))

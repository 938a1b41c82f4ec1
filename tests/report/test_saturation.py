from __future__ import annotations

import numpy as np
import pytest

from optimizer.problem import Engine, Instance, Requests, StepTime, with_knowledge
from optimizer.report.fluid import fluid_rate
from optimizer.report.margin import TOLERANCE, simulated_margin
from optimizer.report.saturation import LIMITS, about, saturation
from optimizer.report.timeline import Episodes
from optimizer.simulator import simulate
from optimizer.traces import draw_arrivals, generate

STEP = StepTime.affine(
    base_s=0.005, per_prefill_token_s=1e-5, per_decode_seq_s=2e-5, per_decode_context_s=1e-8
)
ENGINES = {
    "seats": Engine(name="seats", kv_blocks=4000, max_num_batched_tokens=512, max_num_seqs=32, step_time=STEP),
    "kv_blocks": Engine(name="kv", kv_blocks=400, max_num_batched_tokens=512, max_num_seqs=256, step_time=STEP),
    "token_budget": Engine(name="budget", kv_blocks=9000, max_num_batched_tokens=80, max_num_seqs=80, step_time=STEP),
}  # fmt: skip
N = 4000


def judged(s):
    return saturation(s.schedule, s.instance.requests, s.instance.engine)


def requests(n=N, seed=1):
    return with_knowledge(generate("chat", n, seed, rate=1.0), "exact")


def served_rate(engine, policy):
    """Requests per second while all seats that can be filled are: without the ends, where they are not."""
    s = at_once(engine, policy)
    stays = Episodes.of(s.schedule, s.instance.requests)
    admitted = np.sort(stays.admitted_s[~stays.preempted])
    return 0.6 * N / (admitted[int(0.9 * N)] - admitted[int(0.3 * N)])


def at_once(engine, policy):
    r = requests()
    return simulate(Instance("at once", r.replace(arrival_s=np.zeros(N)), engine), policy)


@pytest.mark.parametrize(
    ("limit", "policy"),
    [
        ("asynchronous", "vllm-v1"),
        *(
            (limit, policy)
            for limit in ("seats", "kv_blocks")
            for policy in ("vllm-v1", "vllm-v0", "orca-pow2")
        ),
        # Those without chunks need a budget as large as the longest prompt.
        ("token_budget", "vllm-v1"),
    ],
)
def test_saturated_above_the_rate_that_can_be_served_and_not_below(limit, policy):
    engine = ENGINES["seats"].replace(async_scheduling=True) if limit == "asynchronous" else ENGINES[limit]
    rate = served_rate(engine, policy)
    for factor in (0.5, 0.9, 1.1, 2.0):
        for seed in range(2):
            s = simulate(
                Instance("drawn", draw_arrivals(requests(), factor * rate, seed=seed), engine), policy
            )
            found = judged(s)
            assert found["label"] == ("saturated" if factor > 1 else "not saturated"), (factor, found)
            if factor > 1:
                assert found["margin"] == pytest.approx(1 / factor, abs=0.1)
                assert found["growth"] == pytest.approx(1 - 1 / factor, abs=0.1)
            if policy == "vllm-v1":
                assert found["margin"] * factor == pytest.approx(1.0, rel=0.25)


def test_bursts_that_drain_are_no_saturation():
    """Twenty bursts, each far more than fits at once, and long pauses; by the way, held back they are."""
    engine = ENGINES["seats"]
    r = requests(2000)
    bursts = r.replace(arrival_s=np.repeat(np.arange(20) * 60.0, 100))
    found = judged(simulate(Instance("bursts", bursts, engine)))
    assert found["label"] == "not saturated"
    assert found["scarce"]["seats"] > 0.05
    late = r.replace(arrival_s=np.sort(np.concatenate((np.linspace(0, 1000, 1900), np.full(100, 900.0)))))
    assert judged(simulate(Instance("late", late, engine)))["label"] == "not saturated"


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("limit", ENGINES)
def test_in_a_batch_what_is_scarce_is_named(limit, asynchronous):
    found = judged(at_once(ENGINES[limit].replace(async_scheduling=asynchronous), "vllm-v1"))
    assert found["label"] == "batch"
    assert (found["growth"], found["busy_share"], found["margin"]) == (None, None, None)
    assert max(found["scarce"], key=found["scarce"].get) == limit
    assert found["scarce"][limit] > 0.8
    assert found["scarce"].get("policy", 0.0) < 0.02
    assert sum(found["scarce"].values()) == pytest.approx(found["held_back_share"], abs=1e-3)
    assert limit.replace("_", " ") in about(found)[0]


def test_a_policy_that_waits_for_its_batch_is_what_holds_back():
    found = judged(at_once(ENGINES["seats"], "tensorrt-llm-static"))
    assert max(found["scarce"], key=found["scarce"].get) == "policy"


def test_held_back_and_limits_step_by_step(under_pressure):
    """Who waits at each start of a step, counted one by one."""
    s, r, engine = under_pressure.schedule, under_pressure.instance.requests, under_pressure.instance.engine
    held_s = seats_s = 0.0
    inside: set[int] = set()
    steps = list(s.iterate())
    for run in range(len(s.steps)):
        first = steps[int(s.steps[:run].sum())]
        inside -= {i for i in inside if s.finish_s[i] <= first.start_s}
        inside -= set(first.preempted)
        inside |= {request for request, _ in first.prefill}
        arrived = int((r.arrival_s <= first.start_s).sum())
        gone = int((s.finish_s <= first.start_s).sum())
        if arrived - gone > len(inside):
            held_s += s.end_s[run] - s.start_s[run]
            seats_s += (s.end_s[run] - s.start_s[run]) * (len(inside) >= engine.max_num_seqs)
    busy_s = (s.end_s - s.start_s).sum()
    found = judged(under_pressure)
    assert found["held_back_share"] == pytest.approx(held_s / busy_s, abs=1e-3)
    assert found["scarce"].get("seats", 0.0) == pytest.approx(seats_s / busy_s, abs=1e-3)
    assert set(found["scarce"]) <= set(LIMITS)


def test_waiting_for_the_running_step_is_not_being_held_back():
    """Also where the next step is composed before the running one ends."""
    for asynchronous in (False, True):
        engine = ENGINES["seats"].replace(async_scheduling=asynchronous)
        r = draw_arrivals(requests(500), 10.0, seed=3)
        found = judged(simulate(Instance("calm", r, engine)))
        assert found["label"] == "not saturated"
        assert found["held_back_share"] < 0.02
        assert found["busy_share"] > 0.5, "and yet the engine is nearly always at work"


def test_few_requests_tell_nothing():
    r = Requests.from_columns({"arrival_s": [0, 1, 2], "prompt_tokens": [9] * 3, "output_tokens": [500] * 3})
    found = judged(simulate(Instance("three", r, ENGINES["seats"].replace(max_num_seqs=1))))
    assert (found["label"], found["margin"]) == ("too few requests", None)
    assert about(found)[0].startswith("too few requests")


@pytest.mark.parametrize("factor", [0.4, 1.6])
def test_the_simulated_margin_leads_to_the_served_rate(factor):
    engine = ENGINES["seats"]
    rate = served_rate(engine, "vllm-v1")
    s = simulate(Instance("drawn", draw_arrivals(requests(), factor * rate, seed=5), engine))
    found = simulated_margin(s)
    low, high = found["margin_between"]
    assert low == found["margin"] < high <= low * TOLERANCE * 1.001
    assert low * factor == pytest.approx(1.0, rel=0.12)
    assert found["margin_simulations"] <= 12
    assert "simulated" in about(found)[1]


def test_what_never_saturates_has_a_margin_without_an_end():
    columns = {"arrival_s": np.arange(40.0), "prompt_tokens": [20] * 40, "output_tokens": [5] * 40}
    s = simulate(Instance("few", Requests.from_columns(columns), ENGINES["seats"].replace(max_num_seqs=64)))
    found = simulated_margin(s)
    assert found["margin_between"][1] is None
    assert "not saturated at 64 times" in about(found)[1]


def test_the_estimate_counts_what_was_computed():
    """Without decodes the engine is a queue of prompts, and the budget alone sets the rate."""
    engine = ENGINES["token_budget"].replace(step_time=StepTime.affine(base_s=0.01))
    r = Requests.from_columns({"prompt_tokens": [160] * 200, "output_tokens": [1] * 200})
    s = simulate(Instance("prompts", r, engine))
    assert fluid_rate(s.schedule, r, engine) == pytest.approx(50.0, rel=0.01)
    assert 200 / s.metrics.makespan_s == pytest.approx(50.0, rel=0.01)

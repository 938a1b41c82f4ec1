"""`steps`: its plan is executed as it says, no policy and no ramp beats it, and known optima come out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.check import check
from optimizer.errors import InputError, PolicyError
from optimizer.formulations.steps import build_steps
from optimizer.policies.plan import PlanPolicy
from optimizer.problem import Engine, Instance, Requests, StepTime, with_knowledge
from optimizer.problem.engine import StepPiece, StepRegime
from optimizer.problem.ramps import Ramps
from optimizer.simulator import simulate
from optimizer.solvers.models import solve_ramps, solve_steps
from optimizer.solvers.result import Status

MODELS = (
    StepTime.affine(base_s=1.0),
    StepTime.affine(base_s=0.5, per_prefill_token_s=0.25, per_decode_seq_s=0.25),
    StepTime(
        regimes=(
            StepRegime(pieces=(StepPiece(base_s=1.0), StepPiece(base_s=0.5, per_prefill_token_s=0.5))),
            StepRegime(min_tokens=4, pieces=(StepPiece(base_s=2.0),)),
        )
    ),
)


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    n = draw(st.integers(1, 3))
    lengths = st.lists(st.integers(1, 3), min_size=n, max_size=n)
    requests = Requests.from_columns(
        {
            "prompt_tokens": draw(lengths),
            "output_tokens": draw(lengths),
            "arrival_s": sorted(draw(st.lists(st.sampled_from([0.0, 0.0, 1.0]), min_size=n, max_size=n))),
        }
    )
    engine = Engine(
        name="e",
        kv_blocks=draw(st.integers(5, 9)),
        block_tokens=1,
        max_num_seqs=draw(st.integers(1, 3)),
        max_num_batched_tokens=draw(st.integers(3, 8)),
        step_time=draw(st.sampled_from(MODELS)),
    )
    objective = draw(st.sampled_from(["makespan", "mean-latency", "ttft"]))
    return Instance("drawn", with_knowledge(requests, "exact"), engine, objective)


def value(simulation, objective: str) -> float:
    metrics = simulation.metrics
    return {
        "makespan": metrics.makespan_s,
        "mean-latency": float(metrics.e2e_s.mean()),
        "ttft": float(metrics.ttft_s.mean()),
    }[objective]


@settings(deadline=None, max_examples=15)
@given(instances())
def test_no_policy_beats_it_and_its_plan_is_executed(instance: Instance) -> None:
    done = solve_steps(instance, workers=1, time_limit_s=120)
    ran = simulate(instance, PlanPolicy(done.solution))
    assert check(ran.schedule, instance).ok
    assert value(ran, instance.objective) == pytest.approx(done.value)
    assert abs(float(done.message.split()[1])) < 1e-9, "no time had to be rounded"
    for policy in ("vllm-v1", "svf", "lpt", "srpt", "sarathi-serve"):
        try:
            other = value(simulate(instance, policy), instance.objective)
        except PolicyError:
            continue
        assert done.bound <= other + 1e-9
        if done.status is Status.OPTIMAL:
            assert done.value <= other + 1e-9


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3), st.integers(5, 7))
def test_in_equal_rounds_it_is_ramps(lengths: list[tuple[int, int]], blocks: int) -> None:
    requests = Requests.from_columns(
        {"prompt_tokens": [p for p, _ in lengths], "output_tokens": [o for _, o in lengths]}
    )
    engine = Engine(
        name="e", kv_blocks=blocks, block_tokens=1, preemption="none", step_time=StepTime.affine(base_s=1.0)
    )
    instance = Instance("rounds", with_knowledge(requests, "exact"), engine, "mean-latency")
    steps = solve_steps(instance, known=None, workers=1, time_limit_s=120)
    ramps = solve_ramps(Ramps.from_instance(instance, 1.0), workers=1, time_limit_s=120)
    assert steps.status is ramps.status is Status.OPTIMAL
    assert steps.value * len(lengths) == pytest.approx(ramps.value)


def test_card_one_of_the_paper() -> None:
    """Prompts at once or one by one: chunks that ride beside decodes are free here, and the model finds that."""
    engine = Engine(
        name="floor",
        kv_blocks=99,
        max_num_seqs=4,
        max_num_batched_tokens=8,
        step_time=StepTime.affine(base_s=1.0),
    )
    requests = Requests.from_columns({"prompt_tokens": [8, 8], "output_tokens": [4, 1]})
    done = solve_steps(Instance("two", requests, engine, "makespan"), workers=1, time_limit_s=120)
    # 16 prompt tokens and 3 decodes on steps of 8: the first prompt, then the other beside the decodes.
    assert (done.status, done.value) == (Status.OPTIMAL, 4.0)


def test_what_it_cannot_say_is_refused() -> None:
    engine = Engine(name="e", kv_blocks=9, prefix_caching=True, step_time=StepTime.affine(base_s=1.0))
    requests = Requests.from_columns({"prompt_tokens": [2], "output_tokens": [2]})
    with pytest.raises(InputError, match="prefix_caching"):
        build_steps(Instance("one", requests, engine))
    with pytest.raises(InputError, match="goodput"):
        solve_steps(Instance("one", requests, engine, "goodput"))
    long = Requests.from_columns({"prompt_tokens": np.full(4, 2), "output_tokens": np.full(4, 3000)})
    with pytest.raises(InputError, match="steps"):
        build_steps(Instance("long", long, engine.replace(prefix_caching=False, kv_blocks=999)))

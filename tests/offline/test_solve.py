"""`solve`: what it answers is executed, checked, bounded, and never worse than the policies it started from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.certificates import verify
from optimizer.errors import InputError
from optimizer.offline import Progress, solve
from optimizer.offline.heuristics import neighbours, orders, policies, token_limits
from optimizer.offline.objective import parse_objective, value_of
from optimizer.offline.packing import packed_order
from optimizer.offline.scenarios import scenarios
from optimizer.policies.plan import PlanPolicy
from optimizer.problem import Engine, Instance, Requests, StepTime, with_knowledge
from optimizer.problem.engine import StepPiece, StepRegime
from optimizer.simulator import simulate


def batch(n: int = 30, seed: int = 0, **engine: object) -> Instance:
    """Requests at once on an engine whose large steps are dear."""
    rng = np.random.default_rng(seed)
    requests = Requests.from_columns(
        {"prompt_tokens": rng.integers(5, 60, n), "output_tokens": rng.integers(2, 80, n)}
    )
    model = StepTime(
        regimes=(
            StepRegime(pieces=(StepPiece(base_s=0.01, per_decode_context_s=1e-6),)),
            StepRegime(min_tokens=17, pieces=(StepPiece(base_s=0.03, per_prefill_token_s=1e-4),)),
        )
    )
    values = {"kv_blocks": 60, "max_num_seqs": 20, "max_num_batched_tokens": 256, "step_time": model} | engine
    return Instance(f"batch-{n}-{seed}", requests, Engine(name="e", **values), "makespan")


@pytest.mark.parametrize("objective", ["makespan", "mean-latency", "weighted-latency", "ttft", "goodput"])
def test_better_than_every_policy_checked_and_bounded(objective: str) -> None:
    instance = batch()
    result = solve(instance, objective=objective, time_limit_s=3)
    assert result.check.ok
    exact = with_knowledge(instance.requests, "exact")
    known = Instance(instance.name, exact, instance.engine)
    for name in policies(instance):
        metrics = simulate(known, name).metrics
        assert result.primal <= value_of(metrics, instance.requests, objective) * (1 + 1e-9), name
    assert result.primal <= result.heuristic <= result.baseline
    if objective == "goodput":
        assert result.dual is None
        assert result.gap is None
    else:
        assert 0 < result.dual <= result.primal
        assert result.certified <= result.dual
        assert float(verify(result.certificate, instance).bound) == pytest.approx(result.certified)
    again = simulate(known, PlanPolicy(result.plan)) if result.plan else result.simulation
    assert value_of(again.metrics, instance.requests, objective) == result.primal
    document = result.to_document()
    assert json.loads(json.dumps(document, allow_nan=False))["checked"] is True
    assert {"primal", "dual", "gap", "baseline", "checked", "limit"} <= set(document)


def test_the_steps_that_are_cheap_are_found() -> None:
    """Sixteen tokens a step cost a third of more: nothing in the search knows that but the simulator."""
    policies_best: list[float] = []

    def enough(progress: Progress) -> None:
        assert progress.primal is not None
        if progress.source != "search":
            policies_best.append(progress.primal)
        elif progress.primal < 0.9 * min(policies_best):
            raise KeyboardInterrupt

    result = solve(batch(40), time_limit_s=60, on_progress=enough)
    assert result.primal < 0.9 * result.heuristic
    assert result.plan is not None


def test_an_optimum_is_called_so_and_ends_the_solve() -> None:
    engine = Engine(name="one", kv_blocks=50, max_num_seqs=1, step_time=StepTime.affine(base_s=1.0))
    requests = Requests.from_columns({"prompt_tokens": [4, 4, 4], "output_tokens": [5, 1, 3]})
    result = solve(Instance("row", requests, engine, "mean-latency"), time_limit_s=30)
    assert (result.primal, result.dual, result.gap, result.limit) == (
        (1 + 4 + 9) / 3,
        (1 + 4 + 9) / 3,
        0.0,
        "optimal",
    )
    assert result.seconds < 10


def test_a_second_objective_decides_among_equals() -> None:
    engine = Engine(name="one", kv_blocks=50, max_num_seqs=1, step_time=StepTime.affine(base_s=1.0))
    requests = Requests.from_columns({"prompt_tokens": [4, 4, 4], "output_tokens": [5, 1, 3]})
    result = solve(Instance("row", requests, engine), objective="makespan,mean-latency", time_limit_s=5)
    assert (result.primal, result.second) == (9.0, (1 + 4 + 9) / 3)
    assert result.objective == "makespan,mean-latency"


def test_predicted_lengths_are_planned_with_and_true_ones_executed() -> None:
    exact = batch(30)
    noisy = Instance("noisy", with_knowledge(exact.requests, "noise:0.5", seed=3), exact.engine, "makespan")
    for scenario in scenarios(noisy, 0):
        assert not np.array_equal(scenario.requests.output_tokens, exact.requests.output_tokens)
        assert scenario.requests.known is noisy.requests.known
    result = solve(noisy, time_limit_s=1)
    assert result.check.ok
    assert result.primal == result.simulation.metrics.makespan_s
    assert result.claimed is not None
    assert result.slippage == pytest.approx(result.primal - result.claimed)
    assert result.dual <= result.primal


def test_progress_only_gets_better_and_ctrl_c_keeps_the_best() -> None:
    seen: list[Progress] = []

    def stop(progress: Progress) -> None:
        seen.append(progress)
        if progress.source == "search":
            raise KeyboardInterrupt

    result = solve(batch(40), time_limit_s=30, on_progress=stop)
    assert result.limit == "interrupted"
    assert result.check.ok
    assert result.found_by == "search"
    values = [p.primal for p in seen if p.primal is not None]
    assert values == sorted(values, reverse=True)
    assert [p.seconds for p in seen] == sorted(p.seconds for p in seen)
    assert result.progress == tuple(seen)


def test_a_gap_is_enough() -> None:
    result = solve(batch(30), time_limit_s=30, gap=0.9)
    assert result.limit in ("gap", "optimal")
    assert result.gap <= 0.9


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"objective": "speed"}, "'speed' is no objective"),
        ({"objective": "makespan,makespan"}, "two different ones"),
        ({"objective": "makespan,ttft,goodput"}, "one objective, or two"),
        ({"time_limit_s": 0}, "expected seconds > 0"),
        ({"gap": 1.0}, r"expected a share in \[0, 1\)"),
    ],
)
def test_what_makes_no_sense_is_refused(how: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve(batch(3), **how)


def test_objectives_are_read() -> None:
    assert parse_objective("ttft") == ("ttft",)
    assert parse_objective("makespan , mean-latency") == ("makespan", "mean-latency")


@given(st.lists(st.integers(0, 60), min_size=1, max_size=40), st.integers(1, 8))
def test_packing_never_loses_to_longest_first(work: list[int], seats: int) -> None:
    loads = [0] * seats
    for load in sorted(work, reverse=True):
        loads[loads.index(min(loads))] += load
    order = packed_order(np.array(work), seats)
    assert sorted(order) == list(range(len(work)))
    finished = [0] * seats
    for request in order:
        finished[finished.index(min(finished))] += work[request]
    assert max(finished) <= max(loads)


@settings(max_examples=50)
@given(st.integers(2, 30), st.integers(0, 99), st.integers(1, 30))
def test_neighbours_are_orders(n: int, seed: int, reach: int) -> None:
    rng = np.random.default_rng(seed)
    found = neighbours(tuple(range(n)), rng, reach)
    for _ in range(20):
        assert sorted(next(found)) == list(range(n))


def test_orders_name_every_request_once_and_limits_lie_within_the_budget() -> None:
    instance = batch(25)
    for name, order in orders(instance, 0, 20).items():
        assert sorted(order) == list(range(25)), name
    limits = token_limits(instance)
    assert limits == sorted(set(limits))
    assert 16 in limits, "where the step time jumps"
    assert max(limits) < instance.engine.max_num_batched_tokens

"""Plans are executed as they are written, in both modes of the simulator."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from optimizer.check import check
from optimizer.errors import InputError, PolicyError
from optimizer.policies.plan import PlanPolicy
from optimizer.problem import Engine, Instance, Requests, StepTime
from optimizer.problem.plan import OrderPlan, PlanStep, StepsPlan
from optimizer.problem.ramps import Ramps
from optimizer.simulator import simulate
from tests.policies.toy import chunks_of, first_service, instances, replay, run, steps_of, toy

quick = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def planned(draw, **pressure):
    """An instance and a plan in order form for it."""
    instance = draw(instances(**pressure))
    n = len(instance.requests)
    named = draw(st.permutations(range(n)))[: draw(st.integers(0, n))]
    when = draw(st.sampled_from(["arrival", "seconds", "rounds", "timed rounds"]))
    timing = {}
    if when == "seconds":
        moment = st.none() | st.sampled_from([0.0, 3.0, 7.5, 20.0])
        timing["earliest_s"] = tuple(draw(st.lists(moment, min_size=n, max_size=n)))
    elif when != "arrival":
        timing["start_round"] = tuple(draw(st.lists(st.integers(0, 40), min_size=n, max_size=n)))
        timing["round_s"] = draw(st.sampled_from([1.0, 0.7])) if when == "timed rounds" else None
    plan = OrderPlan(
        order=tuple(named),
        max_seqs=draw(st.none() | st.integers(1, 4)),
        prefill_tokens=draw(st.none() | st.integers(1, 20)),
        mixing=draw(st.sampled_from(["mixed", "exclusive"])),
        memory=draw(st.sampled_from(["plain", "peak-safe"])),
        **timing,
    )
    return instance, plan


@quick
@given(given_=planned())
def test_both_modes_agree_on_orders_and_the_checker_is_content(given_):
    instance, plan = given_
    fast = simulate(instance, PlanPolicy(plan)).schedule
    slow = simulate(instance, PlanPolicy(plan), step_by_step=True).schedule
    for a, b in zip(fast.iterate(), slow.iterate(), strict=True):
        assert (sorted(a.prefill), sorted(a.decode), sorted(a.preempted)) == (
            sorted(b.prefill),
            sorted(b.decode),
            sorted(b.preempted),
        )
        assert a.start_s == pytest.approx(b.start_s, abs=1e-9)
    assert np.array_equal(fast.finish_s, slow.finish_s)
    assert check(fast, instance)


@quick
@given(given_=planned(), other=st.sampled_from(["vllm-v1", "fastgen", "srpt", "vllm-v0"]))
def test_a_schedule_made_a_plan_gives_the_schedule_again(given_, other):
    instance, order = given_
    try:
        first = simulate(instance, PlanPolicy(order) if other == "srpt" else other)
    except PolicyError:
        assume(False)  # V0 refuses prompts above its watermark
    assume(all(m.tokens <= instance.engine.max_num_batched_tokens for m in replay(first)))
    plan = StepsPlan.of_schedule(first.schedule)
    for step_by_step in (False, True):
        again = simulate(instance, PlanPolicy(plan), step_by_step=step_by_step).schedule
        assert again.finish_s == pytest.approx(first.schedule.finish_s, abs=1e-9)
        assert again.first_token_s == pytest.approx(first.schedule.first_token_s, abs=1e-9)


@quick
@given(given_=planned(), part=st.integers(0, 10))
def test_what_a_plan_leaves_open_is_done_by_the_plain_rule(given_, part):
    instance, order = given_
    whole = StepsPlan.of_schedule(simulate(instance, PlanPolicy(order)).schedule)
    schedule = simulate(instance, PlanPolicy(StepsPlan(steps=whole.steps[:part]))).schedule
    assert check(schedule, instance)
    done, planned = StepsPlan.of_schedule(schedule).steps[:part], whole.steps[:part]
    # Who decodes is a set: the order in which a step names them means nothing.
    assert [(s.prefill, sorted(s.decode), s.preempt) for s in done] == [
        (s.prefill, sorted(s.decode), s.preempt) for s in planned
    ]


@st.composite
def started_ramps(draw):
    """An instance in equal rounds, and feasible starts for it."""
    n = draw(st.integers(1, 7))
    lengths = draw(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=n, max_size=n))
    arrivals = sorted(draw(st.lists(st.integers(0, 12), min_size=n, max_size=n)))
    # Arrivals are kept to the nanosecond: rounds of whole ones, or all there from the start.
    round_s = draw(st.sampled_from([1.0, 0.1, 0.012345678] if arrivals[-1] else [0.0123456789]))
    instance = toy(
        lengths,
        arrivals=[a * round_s for a in arrivals],
        kv_blocks=draw(st.integers(20, 40)),
        block_tokens=draw(st.sampled_from([1, 2, 4])),
        max_num_seqs=draw(st.integers(1, 8)),
        step_time=StepTime.affine(base_s=round_s),
    )
    ramps = Ramps.from_instance(instance)
    start = np.array([], np.int64)
    for i in range(n):  # each as early as it fits beside those before, and a little later
        t = int(ramps.arrival[i]) + draw(st.integers(0, 6))
        part = Ramps(
            ramps.prompt[: i + 1], ramps.rounds[: i + 1], ramps.arrival[: i + 1], ramps.weight[: i + 1],
            ramps.capacity, ramps.block_tokens, ramps.seats,
        )  # fmt: skip
        while not part.feasible(np.append(start, t)):
            t += 1
        start = np.append(start, t)
    return instance, start, round_s


@quick
@given(given_=started_ramps())
def test_starts_in_rounds_are_executed_exactly(given_):
    instance, start, round_s = given_
    plan = OrderPlan.of_starts(start.tolist(), round_s=round_s)
    for step_by_step in (False, True):
        schedule = simulate(instance, PlanPolicy(plan), step_by_step=step_by_step).schedule
        ends = (start + instance.requests.output_tokens) * round_s
        assert schedule.finish_s == pytest.approx(ends, rel=1e-12)
        assert schedule.first_token_s == pytest.approx((start + 1) * round_s, rel=1e-12)
        assert not len(schedule.preempt_run)


def test_starts_in_rounds_hold_whatever_the_steps_take():
    """Memory follows the rounds: with steps of any length nobody is preempted and the overlap stays."""
    slow = StepTime.affine(base_s=0.3, per_prefill_token_s=0.05, per_decode_context_s=0.01)
    simulation = run(
        [(4, 5), (4, 5)],
        PlanPolicy(OrderPlan.of_starts([0, 3])),
        kv_blocks=14,
        step_time=slow,
    )
    assert [sorted(s.decode) for s in steps_of(simulation)] == [[], [0], [0], [0], [0, 1], [1], [1], [1]]
    assert not len(simulation.schedule.preempt_run)


def test_without_a_round_length_a_free_engine_goes_on_at_once():
    simulation = run([(2, 2), (2, 2)], PlanPolicy(OrderPlan.of_starts([0, 50])))
    assert simulation.schedule.finish_s.tolist() == [2.0, 4.0]


def test_a_request_that_is_not_due_keeps_nobody_waiting():
    plan = OrderPlan(order=(1, 0), earliest_s=(None, 3.5))
    simulation = run([(2, 9), (2, 2)], PlanPolicy(plan))
    assert simulation.schedule.first_token_s.tolist() == [1.0, 5.0]


def test_earliest_moments_are_kept_to_the_nanosecond():
    """A moment computed in floats may lie a little behind the step that it means."""
    plan = OrderPlan(earliest_s=(None, 0.3000000000001))
    simulation = run([(1, 9), (1, 2)], PlanPolicy(plan), step_time=StepTime.affine(base_s=0.1))
    assert simulation.schedule.first_token_s[1] == pytest.approx(0.4)


def test_the_order_is_kept_and_the_unnamed_come_behind():
    lengths = [(5, 3)] * 4
    simulation = run(lengths, PlanPolicy(OrderPlan(order=(2, 1), max_seqs=1)))
    assert first_service(simulation) == [2, 1, 0, 3]


def test_the_last_in_the_order_is_thrown_out():
    simulation = run([(4, 6), (4, 6)], PlanPolicy(OrderPlan(order=(1, 0))), kv_blocks=12)
    assert set(simulation.schedule.preempt_request.tolist()) == {0}


@quick
@given(given_=planned())
def test_limits_of_the_plan_hold(given_):
    instance, plan = given_
    for moment in replay(simulate(instance, PlanPolicy(plan))):
        prompts = sum(n for _, n in moment.step.prefill)
        assert prompts <= (plan.prefill_tokens or prompts)
        assert len(moment.context) <= (plan.max_seqs or len(moment.context))
        if plan.mixing == "exclusive":
            assert not (moment.step.prefill and moment.step.decode)


@quick
@given(given_=planned())
def test_peak_safe_plans_never_preempt(given_):
    instance, plan = given_
    safe = plan.model_copy(update={"memory": "peak-safe", "mixing": "mixed"})
    assert not len(simulate(instance, PlanPolicy(safe)).schedule.preempt_run)


def test_a_chunk_budget_spreads_a_prompt_over_decodes():
    simulation = run([(2, 8), (9, 2)], PlanPolicy(OrderPlan(prefill_tokens=3)))
    assert chunks_of(simulation, 1) == [1, 3, 3, 2]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([PlanStep(decode=(0,))], "decodes request 0 at 0.000000 s: it does not run"),
        ([PlanStep(prefill=((0, 2),)), PlanStep(decode=(0,))], "its prompt is not computed"),
        ([PlanStep(prefill=((0, 3),)), PlanStep(prefill=((1, 1),), preempt=(1,))], "preempts request 1"),
        ([PlanStep(prefill=((0, 4),))], "a chunk of 4 tokens for request 0"),
        ([PlanStep(prefill=((1, 3),)), PlanStep(prefill=((1, 1),))], "prefills request 1 at 1.000000 s: it has finished"),
    ],
)  # fmt: skip
def test_a_plan_for_another_instance_is_refused(steps, words):
    with pytest.raises(PolicyError, match=words):
        run([(3, 2), (3, 1)], PlanPolicy(StepsPlan(steps=tuple(steps))))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (OrderPlan(order=(0, 5)), "names request 5; the instance has 2"),
        (OrderPlan(start_round=(1,)), "has 1 of them; the instance has 2"),
        (OrderPlan(earliest_s=(None, 1.0, 2.0)), "has 3 of them; the instance has 2"),
        (StepsPlan(steps=(PlanStep(decode=(2,)),)), "names request 2; the instance has 2"),
    ],
)
def test_a_plan_for_more_requests_is_refused(plan, words):
    with pytest.raises(InputError, match=words):
        run([(3, 2), (3, 1)], PlanPolicy(plan))


def test_2000_requests_replay_in_well_under_a_second():
    rng = np.random.default_rng(0)
    n = 2000
    requests = Requests.from_columns(
        {"prompt_tokens": rng.integers(10, 400, n), "output_tokens": rng.integers(10, 400, n)}
    )
    engine = Engine(name="large", kv_blocks=4000, max_num_seqs=200, step_time=StepTime.affine(base_s=0.02))
    instance = Instance("large", requests, engine)
    plan = OrderPlan(order=tuple(rng.permutation(n).tolist()))
    begin = time.process_time()
    simulate(instance, PlanPolicy(plan))
    starts = OrderPlan.of_starts(rng.integers(0, 4000, n).tolist())
    simulate(instance, PlanPolicy(starts))
    assert time.process_time() - begin < 2.0

"""FasterTransformer and Triton's dynamic batcher against their cards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.problem import StepTime
from optimizer.simulator import simulate
from tests.policies.toy import instances, replay, run, steps_of, toy


def batches(simulation):
    """When each batch's prompts ran, and how many they were."""
    return [(step.start_s, len(step.prefill)) for step in steps_of(simulation) if step.prefill]


def test_utilisation_of_a_batch_with_one_long_member():
    """Outputs 10, 10, 10 and 100 in one batch: 130 of 4 x 100 token places are used, 32.5 %."""
    simulation = run([(8, 10), (8, 10), (8, 10), (8, 100)], "fastertransformer", max_num_seqs=4)
    steps = steps_of(simulation)
    tokens = sum(len(step.decode) + len(step.prefill) for step in steps)
    assert len(steps) == 100
    assert tokens / (4 * len(steps)) == 0.325


def test_makespan_is_the_prefill_and_a_step_for_each_further_token():
    """The prefill gives everybody's first token; the longest output then sets the number of steps."""
    time = StepTime.affine(base_s=0.5, per_prefill_token_s=0.25)
    simulation = run([(4, 10), (6, 25)], "fastertransformer", step_time=time)
    assert simulation.metrics.makespan_s == pytest.approx(0.5 + 0.25 * 10 + 24 * 0.5)


@pytest.mark.parametrize("policy", ["fastertransformer", "triton-dynamic"])
@settings(max_examples=50, deadline=None)
@given(instance=instances())
def test_nobody_joins_a_batch_that_runs(policy, instance):
    """Prompts run only when nobody is left, all in one step; their memory is freed together."""
    simulation = simulate(instance, policy)
    schedule = simulation.schedule
    for moment in replay(simulation):
        assert not (moment.step.prefill and moment.started)
        assert set(moment.step.decode) == moment.can_decode
    spans = set(zip(schedule.hold_first_run, schedule.hold_last_run, strict=True))
    assert len(spans) == len(batches(simulation))
    assert not simulation.metrics.preemptions.any()


def test_each_member_reserves_the_longest_sequence():
    """Memory for 3 sequences of 2048 tokens makes batches of 3, though seats would do for 256."""
    simulation = run([(20, 10)] * 7, "fastertransformer", kv_blocks=3 * 2048 + 100)
    assert batches(simulation) == [(0, 3), (10, 3), (20, 1)]


def test_default_takes_what_is_there():
    """Without delay and preferred sizes a free engine starts whoever waits: first one alone, then the rest."""
    simulation = run([(1, 10)] * 6, "triton-dynamic", arrivals=[0, 1, 2, 3, 4, 5])
    assert batches(simulation) == [(0, 1), (10, 5)]


def test_no_delay_serves_each_alone_on_an_idle_engine():
    """With T=0 requests that come apart are batches of one, begun at their arrival: card 16's B=1."""
    simulation = run([(1, 3)] * 4, "triton-dynamic", arrivals=[0, 10, 20, 30])
    assert batches(simulation) == [(0, 1), (10, 1), (20, 1), (30, 1)]
    assert (simulation.schedule.finish_s - simulation.instance.requests.arrival_s).tolist() == [3] * 4


def test_a_full_batch_does_not_wait():
    """With a delay of 100 s the batch goes as soon as it is full."""
    simulation = run(
        [(1, 3)] * 4, "triton-dynamic", arrivals=[0, 1, 2, 3],
        options={"max_queue_delay_s": 100.0, "max_batch_size": 4},
    )  # fmt: skip
    assert batches(simulation) == [(3, 4)]


def test_the_oldest_waits_no_longer_than_the_delay():
    """At the delay of the oldest what is there goes, in the middle between two arrivals."""
    simulation = run([(1, 3)] * 3, "triton-dynamic", arrivals=[0, 1, 4], options={"max_queue_delay_s": 2.5})
    assert batches(simulation) == [(2.5, 2), (6.5, 1)]


@pytest.mark.parametrize(
    ("there", "expected"),
    [(4, [(0, 4)]), (5, [(0, 4), (7, 1)]), (9, [(0, 8), (7, 1)]), (3, [(7, 3)]), (12, [(0, 8), (3, 4)])],
)
def test_the_largest_preferred_size_that_can_be_formed_goes_at_once(there, expected):
    """Sizes 4 and 8 go without delay; what makes no preferred size waits for its 7 s."""
    simulation = run(
        [(1, 3)] * there, "triton-dynamic",
        options={"preferred_batch_sizes": "4/8", "max_queue_delay_s": 7.0}, max_num_seqs=16,
    )  # fmt: skip
    assert batches(simulation) == expected


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.sampled_from([0.0, 0.5, 1.0, 30.0]), min_size=1, max_size=8),
    delay=st.sampled_from([0.0, 0.75, 2.0, 6.0]),
    most=st.integers(1, 4),
)
def test_the_first_member_waits_at_most_the_delay_and_one_service(gaps, delay, most):
    """A batch of equal requests serves in 3 s: nobody at the head waits beyond the delay on a free engine."""
    arrivals = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    instance = toy([(1, 3)] * len(gaps), arrivals=arrivals)
    options = {"max_queue_delay_s": delay, "max_batch_size": most}
    simulation = simulate(instance, "triton-dynamic", options=options)
    free = 0.0
    for step in steps_of(simulation):
        if step.prefill:
            head = step.prefill[0][0]
            full = arrivals[head + most - 1] if head + most <= len(arrivals) else float("inf")
            assert step.start_s == max(free, min(arrivals[head] + delay, full))
            assert len(step.prefill) <= most
            free = step.start_s + 3


def test_sizes_of_batches_under_poisson_arrivals():
    """At 10 requests/s, a delay of 0.2 s, sizes up to 4 and hardly any service: the law of card 16."""
    rng = np.random.default_rng(1)
    n = 20_000
    instance = toy(
        [(1, 1)] * n,
        arrivals=np.cumsum(rng.exponential(0.1, n)).tolist(),
        step_time=StepTime.affine(base_s=1e-7),
    )
    options = {"max_queue_delay_s": 0.2, "max_batch_size": 4}
    sizes = np.array([size for _, size in batches(simulate(instance, "triton-dynamic", options=options))])
    shares = np.bincount(sizes, minlength=5)[1:] / len(sizes)
    assert shares == pytest.approx([0.1353, 0.2707, 0.2707, 0.3233], abs=0.02)
    assert sizes.mean() == pytest.approx(2.782, abs=0.03)


@pytest.mark.parametrize(
    "options",
    [{"preferred_batch_sizes": "4/x"}, {"preferred_batch_sizes": "0"}, {"preferred_batch_sizes": "300"},
     {"max_queue_delay_s": -1.0}, {"max_queue_delay_s": "nan"}],
)  # fmt: skip
def test_impossible_sizes_and_delays_are_refused(options):
    """What is no size of a batch, or no delay, is one clear error."""
    with pytest.raises(InputError, match="expected sizes from 1 to 256"):
        run([(1, 3)], "triton-dynamic", options=options)

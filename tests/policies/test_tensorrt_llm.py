"""TensorRT-LLM's capacity schedulers against their card."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.policies.tensorrt_llm import StaticBatch
from optimizer.simulator import simulate
from tests.policies.toy import instances, replay, run, steps_of

TWELVE = {"lengths": [(10, 30)] * 12, "caps": [30] * 12, "kv_blocks": 100}


def most_at_once(simulation):
    return max(len(moment.context) for moment in replay(simulation))


def test_no_evict_admits_two_of_forty_into_a_hundred():
    """Prompt 10 and cap 30 are 40 blocks: a third does not fit into the 20 that are left."""
    simulation = run(policy="tensorrt-llm-no-evict", **TWELVE)
    assert most_at_once(simulation) == 2
    assert not simulation.metrics.preemptions.any()


def test_no_evict_goes_by_the_cap_not_by_the_output():
    """Where outputs of 1 are capped at 30, still only two run at a time."""
    simulation = run([(10, 1)] * 6, "tensorrt-llm-no-evict", caps=[30] * 6, kv_blocks=100)
    assert [len(step.prefill) for step in steps_of(simulation)] == [2, 2, 2]


def test_max_utilization_admits_ten_and_pauses_the_newest():
    """Blocks for the next step are enough to start: ten prompts fill the cache, then the newest is paused."""
    simulation = run(policy="tensorrt-llm-max-utilization", **TWELVE)
    steps = steps_of(simulation)
    assert [len(steps[0].prefill), steps[1].preempted] == [10, (9,)]
    assert sorted(steps[1].decode) == list(range(9))
    assert most_at_once(simulation) == 10


@settings(max_examples=60, deadline=None)
@given(instance=instances())
def test_max_utilization_pauses_the_last_started(instance):
    """Whoever is paused was the last in order of arrival among those that had started."""
    started: set[int] = set()
    for moment in replay(simulate(instance, "tensorrt-llm-max-utilization")):
        for request in moment.step.preempted:
            assert request == max(started)
            started.discard(request)
        started = set(moment.context)


@pytest.mark.parametrize("policy", ["tensorrt-llm-no-evict", "tensorrt-llm-static"])
@pytest.mark.parametrize("caps", ["exact", None])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_never_pauses(policy, caps, data):
    """Who is started is in every batch to the end, whatever the caps."""
    simulation = simulate(data.draw(instances(caps=caps)), policy)
    assert not simulation.metrics.preemptions.any()
    for moment in replay(simulation):
        assert set(moment.step.decode) == moment.can_decode


@dataclass
class Watched(StaticBatch):
    """The static batch, with a look at who is active before and after each decision."""

    name = "watched"
    asks_always = True

    def start(self, state):
        super().start(state)
        self.batches = 0

    def step(self, state):
        before = list(state.running)
        super().step(state)
        assert not before or list(state.running) == before
        self.batches += not before and bool(state.running)


@settings(max_examples=60, deadline=None)
@given(instance=instances())
def test_static_admits_only_when_nothing_is_active(instance):
    """A batch is chosen when all of the last one are done, and nobody joins it, however long its prompts take."""
    policy = Watched()
    schedule = simulate(instance, policy).schedule
    assert 1 <= policy.batches <= len(instance.requests)
    assert not np.isnan(schedule.finish_s).any()


def test_static_serves_two_by_two():
    """Of 40 blocks each, two of 100 run to the end before the next two start together."""
    simulation = run(
        [(10, 30), (10, 5), (10, 30), (10, 5)], "tensorrt-llm-static", caps=[30] * 4, kv_blocks=100
    )
    assert [(step.start_s, len(step.prefill)) for step in steps_of(simulation) if step.prefill] == [
        (0, 2),
        (30, 2),
    ]

"""LightLLM's router and its Past-Future scheduler against their card."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings

from optimizer.policies.lightllm import LightLLM
from optimizer.simulator import simulate
from tests.policies.toy import chunks_of, first_service, instances, replay, run, same_schedule, steps_of, toy


@settings(max_examples=80, deadline=None)
@given(instance=instances())
def test_a_perfect_predictor_never_pauses(instance):
    """Where caps are the true lengths, the future peak is exact and nobody is ever thrown out."""
    simulation = simulate(instance, "lightllm")
    assert not simulation.metrics.preemptions.any()
    assert first_service(simulation) == list(range(len(instance.requests)))


@dataclass
class Audited(LightLLM):
    """LightLLM that counts tokens before every step."""

    name = "audited"
    asks_always = True

    def step(self, state):
        assert state.used_blocks() == sum(state.context(r) for r in state.running)
        super().step(state)


@settings(max_examples=60, deadline=None)
@given(instance=instances())
def test_not_a_token_is_wasted(instance):
    """KV is kept by the token: what is allocated is the sum of contexts, whatever the engine's blocks."""
    simulation = simulate(instance, Audited())
    assert simulation.schedule.block_tokens == 1
    for moment in replay(simulation):
        assert sum(moment.context.values()) <= instance.engine.kv_tokens
        assert bool(moment.step.prefill) != bool(moment.step.decode)


def test_admits_while_the_peak_is_below_the_capacity():
    """Three of prompt 10 and cap 10 peak at 60: in 61 slots they start together, in 60 only two do."""
    for blocks, together in ((61, 3), (60, 2)):
        simulation = run([(10, 10)] * 3, "lightllm", caps=[10] * 3, kv_blocks=blocks)
        assert len(steps_of(simulation)[0].prefill) == together


@pytest.mark.parametrize("every", [1, 6, 10])
def test_prompts_are_tried_every_so_many_decode_steps(every):
    """Who arrives in between waits for the next try."""
    simulation = run(
        [(1, 40), (1, 3)], "lightllm", arrivals=[0, 1.5], caps=[40, 3], options={"max_wait_steps": every}
    )
    decodes = [bool(step.decode) for step in steps_of(simulation)]
    assert decodes.index(False, 1) == 1 + (every if every > 1 else 1)


def test_optimism_pauses_the_newest():
    """A router that believes in short outputs admits too many; the newest then gives its KV up."""
    hopeful = {"router_token_ratio": 1.0, "router_max_new_tokens": 2}
    lengths = {"lengths": [(10, 30)] * 3, "caps": [30] * 3, "kv_blocks": 60}
    simulation = run(policy="lightllm", options=hopeful, **lengths)
    thrown = [step.preempted for step in steps_of(simulation) if step.preempted]
    assert thrown[0] == (2,)
    assert chunks_of(simulation, 2)[1] == 10 + 11
    assert not run(policy="lightllm", **lengths).metrics.preemptions.any()


def chats(n=400, seed=1):
    rng = np.random.default_rng(seed)
    outputs = rng.integers(20, 120, n).tolist()
    lengths = [(int(p), o) for p, o in zip(rng.integers(5, 60, n), outputs, strict=True)]
    return toy(lengths, arrivals=np.cumsum(rng.exponential(4.0, n)).tolist(), caps=[400] * n, kv_blocks=3000)


def test_past_future_is_seeded():
    """The same seed gives the same schedule, another seed another one."""
    instance = chats()
    first, again, other = (simulate(instance, "past-future", seed=s).schedule for s in (3, 3, 4))
    assert same_schedule(first, again)
    assert first.to_document() == again.to_document()
    assert not same_schedule(first, other)


def test_past_future_learns_that_caps_are_not_reached():
    """Once it has seen outputs, it admits more than the classic router, which believes in the caps."""
    instance = chats()
    learned, classic = simulate(instance, "past-future"), simulate(instance, "lightllm")
    assert not same_schedule(learned.schedule, classic.schedule)
    assert learned.metrics.makespan_s < classic.metrics.makespan_s
    assert np.mean(learned.schedule.first_token_s) < np.mean(classic.schedule.first_token_s)


def test_past_future_keeps_a_reserve():
    """Before it has seen any output it draws caps: two of 50 peak at 100, which 5 % of reserve forbid in 105."""
    for blocks, together in ((107, 2), (105, 1)):
        simulation = run([(10, 5)] * 2, "past-future", caps=[40] * 2, kv_blocks=blocks)
        assert len(steps_of(simulation)[0].prefill) == together

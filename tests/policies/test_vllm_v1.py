"""vLLM V1 against its card: one budget, decodes first, shared prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from optimizer.problem import PrefixHashes
from optimizer.simulator import simulate
from tests.policies.toy import chunks_of, first_service, instances, replay, run, steps_of


def test_budget_512_gives_a_prompt_509_509_182_and_the_next_327():
    """Three decodes take 3 of 512 tokens; what a prompt's last chunk leaves goes to the next in line."""
    simulation = run(
        [(1, 50)] * 3 + [(1200, 5), (1000, 5)],
        "vllm-v1",
        arrivals=[0, 0, 0, 0.5, 0.5],
        max_num_batched_tokens=512,
    )
    steps = steps_of(simulation)
    assert [step.prefill for step in steps[1:4]] == [((3, 509),), ((3, 509),), ((3, 182), (4, 327))]
    assert all(sorted(step.decode)[:3] == [0, 1, 2] for step in steps[1:4])


@pytest.mark.parametrize(("shared", "hit"), [(100, 96), (96, 96), (15, 0), (16, 16)])
def test_a_shared_prefix_hits_its_full_blocks(shared, hit):
    """Of a prefix that two prompts share, the second finds the full blocks of 16 tokens in the cache."""
    ids = [[*range(7)], [*range(shared // 16), *range(100, 107 - shared // 16)]]
    prefix = PrefixHashes(np.array(ids[0] + ids[1]), np.array([0, 7, 14]), 16)
    simulation = run(
        [(120, 5), (120, 5)], "vllm-v1", arrivals=[0, 1], prefix=prefix, block_tokens=16, prefix_caching=True
    )
    hits = dict(zip(simulation.schedule.cached_request, simulation.schedule.cached_tokens, strict=True))
    assert hits.get(1, 0) == hit
    assert chunks_of(simulation, 1) == [120 - hit]


def test_the_last_token_of_an_equal_prompt_is_computed_again():
    """A prompt that is in the cache as a whole still computes its last block: something must be sampled."""
    prefix = PrefixHashes(np.array([1, 2, 3, 4] * 2), np.array([0, 4, 8]), 16)
    simulation = run(
        [(64, 5), (64, 5)], "vllm-v1", arrivals=[0, 1], prefix=prefix, block_tokens=16, prefix_caching=True
    )
    assert simulation.schedule.cached_tokens.tolist() == [48]


@settings(max_examples=80, deadline=None)
@given(instance=instances())
def test_within_budget_and_seats_and_no_decode_is_displaced(instance):
    """Every step keeps to budget, seats and blocks, and all who can decode do, whatever prompts come."""
    engine = instance.engine
    for moment in replay(simulate(instance, "vllm-v1")):
        assert moment.tokens <= engine.max_num_batched_tokens
        assert len(moment.context) <= engine.max_num_seqs
        assert sum(-(-c // engine.block_tokens) for c in moment.context.values()) <= engine.kv_blocks
        assert set(moment.step.decode) == moment.can_decode


@settings(max_examples=40, deadline=None)
@given(instance=instances())
def test_first_served_in_order_of_arrival(instance):
    """Prompts start in order of arrival, also where some are thrown out and come back."""
    order = first_service(simulate(instance, "vllm-v1"))
    assert order == sorted(order)


def test_the_last_admitted_is_thrown_out_and_waits_in_front():
    """Where blocks run out the last admitted goes, is computed anew from prompt and output, before later ones."""
    simulation = run([(4, 8), (4, 8), (4, 8)], "vllm-v1", kv_blocks=12, max_num_seqs=2)
    thrown = [(i, step.preempted) for i, step in enumerate(steps_of(simulation)) if step.preempted]
    assert thrown[0] == (3, (1,))
    assert chunks_of(simulation, 1) == [4, 4 + 3]
    assert first_service(simulation) == [0, 1, 2]
    assert simulation.schedule.finish_s[1] < simulation.schedule.finish_s[2]


def test_the_threshold_caps_a_prompt_in_each_step():
    """`long_prefill_token_threshold` leaves budget to the next prompt in the same step."""
    simulation = run(
        [(100, 2), (30, 2)], "vllm-v1", options={"long_prefill_token_threshold": 40}, max_num_batched_tokens=60,
        max_num_seqs=4,
    )  # fmt: skip
    assert [step.prefill for step in steps_of(simulation)[:3]] == [
        ((0, 40), (1, 20)),
        ((0, 40), (1, 10)),
        ((0, 20),),
    ]

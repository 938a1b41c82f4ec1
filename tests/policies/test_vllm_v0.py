"""vLLM V0 against its card: prompts first and alone, a watermark, recompute."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import assume, given, settings

from optimizer.errors import PolicyError
from optimizer.policies.vllm_v0 import VllmV0
from optimizer.simulator import simulate
from tests.policies.toy import chunks_of, first_service, instances, replay, run, steps_of

NO_WATERMARK = {"watermark": 0.0}


@pytest.mark.parametrize("step_by_step", [False, True])
def test_a_prompt_of_all_100_blocks_is_never_admitted(step_by_step):
    """With N=100 blocks of 16 one must stay free: 1600 tokens can never be served, and that is said."""
    with pytest.raises(PolicyError, match=r"vllm-v0 never admits request 0: its prompt takes 100 of 100"):
        run([(1600, 1)], "vllm-v0", kv_blocks=100, block_tokens=16, step_by_step=step_by_step)


@pytest.mark.parametrize("step_by_step", [False, True])
def test_a_prompt_of_99_blocks_is_admitted_when_empty(step_by_step):
    """1584 tokens leave the one block of the watermark free; while anybody else runs, they wait."""
    simulation = run(
        [(16, 3), (1584, 2)], "vllm-v0", kv_blocks=100, block_tokens=16, step_by_step=step_by_step
    )
    assert [step.prefill for step in steps_of(simulation)] == [((0, 16),), (), (), ((1, 1584),), ()]


@settings(max_examples=80, deadline=None)
@given(instance=instances())
def test_no_step_mixes_prefill_and_decode(instance):
    """A step computes whole prompts or decodes everybody who can; prompts keep to the token budget."""
    prompts = instance.requests.prompt_tokens
    for moment in replay(simulate(instance, "vllm-v0", options=NO_WATERMARK)):
        prefill, decode = moment.step.prefill, moment.step.decode
        assert bool(prefill) != bool(decode)
        assert all(n >= prompts[r] for r, n in prefill)
        assert len(prefill) <= 1 or moment.tokens <= instance.engine.max_num_batched_tokens
        if decode:
            assert set(decode) == moment.can_decode


@settings(max_examples=40, deadline=None)
@given(instance=instances())
def test_first_service_in_order_of_arrival(instance):
    """Nobody overtakes: a prompt that does not fit blocks those behind it."""
    order = first_service(simulate(instance, "vllm-v0", options=NO_WATERMARK))
    assert order == sorted(order)


@settings(max_examples=80, deadline=None)
@given(instance=instances())
def test_recompute_is_prompt_and_output_so_far(instance):
    """The next prefill of a request thrown out is as long as its prompt and what it had generated."""
    simulation = simulate(instance, "vllm-v0", options=NO_WATERMARK)
    assume(simulation.metrics.preemptions.any())
    expected: dict[int, int] = {}
    generated: dict[int, int] = {}
    for moment in replay(simulation):
        for request in moment.step.preempted:
            expected[request] = int(instance.requests.prompt_tokens[request]) + generated[request]
        for request, tokens in moment.step.prefill:
            assert tokens == expected.pop(request, tokens)
        generated = moment.generated
    assert not expected


def test_the_latest_arrived_is_thrown_out_and_readmitted_first():
    """Of three that decode, the latest arrived makes room; when blocks are there again it goes first."""
    simulation = run(
        [(4, 8), (4, 8), (4, 8), (4, 8)], "vllm-v0", options=NO_WATERMARK, kv_blocks=14, max_num_seqs=3
    )
    thrown = [step.preempted for step in steps_of(simulation) if step.preempted]
    assert thrown[0] == (2,)
    assert chunks_of(simulation, 2)[:2] == [4, 4 + 1]
    assert first_service(simulation) == [0, 1, 2, 3]
    assert simulation.schedule.finish_s[2] < simulation.schedule.finish_s[3]


@dataclass
class Audited(VllmV0):
    """vLLM V0 that counts all blocks before every step."""

    name = "audited"
    asks_always = True
    audits = 0

    def step(self, state):
        blocks = {r: state.blocks_of(r) for r in state.running}
        contexts = {r: state.context(r) for r in state.running}
        assert sum(blocks.values()) == state.used_blocks()
        assert state.used_blocks() + state.free_blocks() == state.blocks
        for request, held in blocks.items():
            assert 0 <= held * state.block_tokens - contexts[request] <= state.block_tokens - 1
        self.audits += bool(blocks)
        super().step(state)


@settings(max_examples=60, deadline=None)
@given(instance=instances())
def test_blocks_are_conserved_and_at_most_one_is_partly_empty(instance):
    """Allocated and free blocks make up the pool at all times; a request wastes less than one block."""
    policy = Audited(watermark=0.0)
    simulate(instance, policy)
    assert policy.audits or instance.requests.output_tokens.max() == 1

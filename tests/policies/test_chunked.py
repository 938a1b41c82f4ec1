"""Sarathi, Sarathi-Serve and DeepSpeed-FastGen against their cards: chunks of prompts beside decodes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.problem import StepTime
from optimizer.simulator import simulate
from tests.policies.toy import chunks_of, first_service, instances, replay, run, steps_of

CHUNKED = ["sarathi", "sarathi-serve", "fastgen"]
BUSY_TIME = StepTime.affine(base_s=0.01, per_prefill_token_s=1e-3, per_decode_seq_s=1e-3)


@pytest.mark.parametrize("policy", ["sarathi", "sarathi-serve"])
@settings(max_examples=60, deadline=None)
@given(instance=instances())
def test_no_generation_stalls(policy, instance):
    """Every step contains all decodes, under KV pressure those that are left, and keeps to the budget."""
    for moment in replay(simulate(instance, policy)):
        assert set(moment.step.decode) == moment.can_decode
        assert moment.tokens <= instance.engine.max_num_batched_tokens
        assert len({r for r, _ in moment.step.prefill}) == len(moment.step.prefill)


@pytest.mark.parametrize("policy", CHUNKED)
@pytest.mark.parametrize(
    ("prompt", "budget", "count"), [(1200, 512, 3), (512, 512, 1), (513, 512, 2), (1, 512, 1)]
)
def test_a_lone_prompt_takes_as_many_steps_as_budgets(policy, prompt, budget, count):
    """A prompt alone is finished in its length over the budget, rounded up."""
    simulation = run([(prompt, 2)], policy, max_num_batched_tokens=budget)
    assert len(chunks_of(simulation, 0)) == count
    assert simulation.schedule.first_token_s[0] == count


@settings(max_examples=40, deadline=None)
@given(instance=instances(pressure=False))
def test_time_between_tokens_is_at_most_the_longest_step(instance):
    """No token of a running request waits for more than one step, and no step is above a full budget's."""
    instance = replace(instance, engine=instance.engine.replace(step_time=BUSY_TIME))
    simulation = simulate(instance, "sarathi-serve")
    moments = list(replay(simulation))
    ends = [m.step.start_s + 0.01 + 1e-3 * m.tokens for m in moments]
    assert ends[-1] == pytest.approx(simulation.metrics.makespan_s)
    last: dict[int, float] = {}
    most = 0.0
    for moment, end in zip(moments, ends, strict=True):
        for request in moment.step.decode:
            most = max(most, end - last[request])
        for request in moment.generated:
            if moment.generated[request] and (request in moment.step.decode or request not in last):
                last[request] = end
    steps = [end - m.step.start_s for m, end in zip(moments, ends, strict=True) if m.step.decode]
    assert most <= max(steps, default=0) + 1e-9
    assert most <= 0.01 + 1e-3 * instance.engine.max_num_batched_tokens + 1e-9


@settings(max_examples=40, deadline=None)
@given(instance=instances(pressure=False, least_budget=512))
def test_an_unlimited_budget_gives_orcas_batches(instance):
    """With room for every prompt in a step, Sarathi-Serve composes the steps that Orca does."""

    def steps(policy, **options):
        return [
            (s.start_s, sorted(s.prefill), sorted(s.decode))
            for s in steps_of(simulate(instance, policy, options=options))
        ]

    assert steps("sarathi-serve") == steps("orca-oracle", contiguous=False)


def test_sarathi_tops_one_chunk_up_with_decodes():
    """The original gives a step one chunk of one prompt: the size less the decodes, and no second prompt."""
    simulation = run(
        [(1, 9), (1, 9), (50, 9), (50, 9)], "sarathi", arrivals=[0, 0, 1.5, 1.5], max_num_batched_tokens=32,
        max_num_seqs=8,
    )  # fmt: skip
    prefills = [step.prefill for step in steps_of(simulation) if step.prefill]
    assert prefills == [((0, 1),), ((1, 1),), ((2, 30),), ((2, 20),), ((3, 29),), ((3, 21),)]


def test_sarathi_serve_starts_the_next_prompt_in_the_same_step():
    """What the last chunk of a prompt leaves of the budget goes to the next prompt."""
    simulation = run([(50, 9), (50, 9)], "sarathi-serve", max_num_batched_tokens=32, max_num_seqs=8)
    assert [s.prefill for s in steps_of(simulation)[:2]] == [((0, 32),), ((0, 18), (1, 14))]


@pytest.mark.parametrize(("blocks", "start"), [(131, 1), (130, 30)])
def test_whole_prompt_must_fit_above_the_watermark(blocks, start):
    """Beside 11 and 10 tokens of two that decode, a prompt of 100 starts if 10 more blocks stay free."""
    simulation = run(
        [(10, 30), (9, 30), (100, 2)],
        "sarathi-serve",
        arrivals=[0, 0, 0.5],
        kv_blocks=blocks,
        max_num_batched_tokens=32,
        max_num_seqs=8,
        options={"watermark": 10.5 / blocks},
    )
    assert next(s.start_s for s in steps_of(simulation) if any(r == 2 for r, _ in s.prefill)) == start


def test_blocks_promised_to_a_prompt_are_not_taken_by_decodes():
    """A prompt owns the blocks of its whole length from admission; a decode that lacks one throws it out at once."""
    simulation = run(
        [(10, 30), (40, 2)], "sarathi-serve", arrivals=[0, 0.5], kv_blocks=53, max_num_batched_tokens=8,
        max_num_seqs=8, options={"watermark": 0.0},
    )  # fmt: skip
    steps = steps_of(simulation)
    first_decode = next(i for i, step in enumerate(steps) if step.decode)
    # Contexts 11, 12 and 13 fit beside the promised 40; the fourth decode would make 54 of 53.
    assert [i - first_decode for i, step in enumerate(steps) if step.preempted == (1,)] == [3]


@pytest.mark.parametrize("policy", ["fastgen", "sarathi-serve"])
@settings(max_examples=40, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=20))
def test_with_backlog_every_forward_is_exactly_the_budget(policy, lengths):
    """As long as prompts wait, each step has exactly 16 tokens; Orca's are as long as the prompts are."""
    simulation = run(lengths, policy, max_num_batched_tokens=16, max_num_seqs=16)
    sizes = [moment.tokens for moment in replay(simulation)]
    last = max(i for i, step in enumerate(steps_of(simulation)) if step.prefill)
    assert sizes[:last] == [16] * last


def test_fastgen_splits_a_short_prompt_to_fill_the_budget():
    """Of two prompts of 10 the second gives 6 tokens to the first step of 16 and 4 to the next, in front."""
    simulation = run([(10, 3), (10, 3), (10, 3)], "fastgen", max_num_batched_tokens=16, max_num_seqs=8)
    assert [s.prefill for s in steps_of(simulation)[:3]] == [((0, 10), (1, 6)), ((1, 4), (2, 10)), ()]


@settings(max_examples=40, deadline=None)
@given(instance=instances())
def test_fastgen_starts_in_order_and_keeps_to_the_budget(instance):
    """Prompts start in order of arrival; only whom blocks fail misses a step, nobody else."""
    simulation = simulate(instance, "fastgen")
    order = first_service(simulation)
    assert order == sorted(order)
    b = instance.engine.block_tokens
    for moment in replay(simulation):
        assert 0 < moment.tokens <= instance.engine.max_num_batched_tokens
        assert all(moment.context[r] % b == 0 for r in moment.can_decode - set(moment.step.decode))


def test_fastgen_holds_back_whom_blocks_fail():
    """With one block left for two that need one, the later waits with its KV kept until the first is done."""
    simulation = run([(7, 5), (7, 5)], "fastgen", kv_blocks=5, block_tokens=4)
    decodes = [tuple(sorted(step.decode)) for step in steps_of(simulation) if step.decode]
    assert decodes == [(0, 1), (0,), (0,), (0,), (1,), (1,), (1,)]
    assert not simulation.metrics.preemptions.any()


def test_fastgen_evicts_the_last_when_nothing_can_run():
    """Where both lack a block, the last gives up its own and is computed anew from prompt and output."""
    simulation = run([(7, 5), (7, 5)], "fastgen", kv_blocks=4, block_tokens=4)
    assert [step.preempted for step in steps_of(simulation) if step.preempted] == [(1,)]
    assert chunks_of(simulation, 1) == [7, 7 + 2]

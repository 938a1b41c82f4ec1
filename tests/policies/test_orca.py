"""Orca against its card: first come first served, a reservation for life, no preemption."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.simulator import simulate
from tests.policies.toy import first_service, instances, replay, run, steps_of

ORCAS = ["orca-max", "orca-pow2", "orca-oracle"]


def most_at_once(simulation):
    return max(len(moment.context) for moment in replay(simulation))


@pytest.mark.parametrize("caps", [None, [10] * 12])
def test_4096_slots_hold_two_requests_of_at_most_2048(caps):
    """However short the outputs turn out, two maximal reservations fill the memory; exact ones do not."""
    longest = run([(20, 10)] * 12, "orca-max", kv_blocks=4096, caps=caps)
    assert most_at_once(longest) == 2
    assert set(longest.schedule.hold_tokens) == {2048}
    assert most_at_once(run([(20, 10)] * 12, "orca-oracle", kv_blocks=4096, caps=caps)) == 12


def test_a_cap_beyond_the_length_of_the_model_is_reserved():
    """Where prompt and cap are longer than the option says, the model's length holds them: a power of two."""
    simulation = run([(100, 10)], "orca-max", caps=[3000])
    assert simulation.schedule.hold_tokens.tolist() == [4096]


def test_requests_longer_than_the_option_raise_the_length_of_the_model():
    """Without caps the reservation is one for all, and long enough for the longest request there is."""
    simulation = run([(20, 10), (5000, 100)], "orca-max", kv_blocks=20_000)
    assert set(simulation.schedule.hold_tokens) == {8192}


def test_pow2_reserves_the_next_power_of_two():
    """Prompt 10 and outputs 1, 8, 9, 100 reserve 11, 18, 26, 138 tokens."""
    simulation = run([(10, 1), (10, 8), (10, 9), (10, 100)], "orca-pow2")
    schedule = simulation.schedule
    held = dict(zip(schedule.hold_request.tolist(), schedule.hold_tokens.tolist(), strict=True))
    assert held == {0: 11, 1: 18, 2: 26, 3: 138}


@pytest.mark.parametrize("policy", ["orca-pow2", "orca-oracle"])
def test_exact_lengths_must_be_known(policy):
    """An oracle without knowledge is refused, with the field that lacks."""
    with pytest.raises(InputError, match="request 0 is not known") as caught:
        run([(10, 10)], policy, known="none")
    assert caught.value.field == "lengths"


@pytest.mark.parametrize("policy", ORCAS)
@settings(max_examples=40, deadline=None)
@given(instance=instances(), contiguous=st.booleans())
def test_one_reservation_for_life_and_no_preemption(policy, instance, contiguous):
    """A request holds the same slots from its first step to its last; slots never overlap or run out."""
    simulation = simulate(instance, policy, options={"contiguous": contiguous})
    schedule = simulation.schedule
    assert not simulation.metrics.preemptions.any()
    assert sorted(schedule.hold_request) == list(range(len(instance.requests)))
    first = dict(zip(schedule.chunk_request, schedule.chunk_run, strict=True))
    for request, begin, end in zip(
        schedule.hold_request, schedule.hold_first_run, schedule.hold_last_run, strict=True
    ):
        assert begin == first[request]
        assert schedule.end_s[end] == schedule.finish_s[request]
    for now in range(len(schedule.steps)):
        alive = (schedule.hold_first_run <= now) & (now <= schedule.hold_last_run)
        assert schedule.hold_tokens[alive].sum() <= instance.engine.kv_tokens
        if contiguous:
            places = sorted(zip(schedule.hold_offset[alive], schedule.hold_tokens[alive], strict=True))
            assert all(a + n <= b for (a, n), (b, _) in pairwise(places))


@pytest.mark.parametrize("policy", ORCAS)
@settings(max_examples=30, deadline=None)
@given(instance=instances())
def test_whole_prompts_beside_all_decodes_in_order_of_arrival(policy, instance):
    """Newcomers run their prompts at full length in a step in which everybody else decodes on."""
    simulation = simulate(instance, policy)
    assert first_service(simulation) == list(range(len(instance.requests)))
    for moment in replay(simulation):
        assert all(n == instance.requests.prompt_tokens[r] for r, n in moment.step.prefill)
        assert set(moment.step.decode) == moment.can_decode


@pytest.mark.parametrize(("contiguous", "start"), [(True, 5), (False, 2)])
def test_contiguous_memory_fragments(contiguous, start):
    """Holes of 7 and 7 slots on both sides of a living request do not hold one of 10, though 14 are free."""
    lengths = [(5, 2), (1, 5), (5, 2), (8, 2)]
    simulation = run(lengths, "orca-oracle", options={"contiguous": contiguous}, kv_blocks=20)
    assert [step.start_s for step in steps_of(simulation) if (3, 8) in step.prefill] == [start]

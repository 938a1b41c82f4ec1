"""The hybrid policy: lists of clients, stages of prompts alone, and when these begin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.policies import make_policy
from optimizer.policies.hybrid import ClientLists
from optimizer.problem import StepTime
from optimizer.simulator import simulate
from optimizer.traces import instance as catalogue
from tests.policies.toy import first_service, replay, run, steps_of, toy
from tests.policies.toy import instances as toy_instances
from tests.simulator.test_event_compression import instances, outcome


@settings(max_examples=80, deadline=None)
@given(instance=toy_instances(), stall=st.sampled_from(["avoidable", "whole"]))
def test_a_step_is_a_stage_of_prompts_or_a_round_of_all_who_decode(instance, stall):
    simulation = simulate(instance, "hybrid", options={"stall": stall})
    for moment in replay(simulation):
        assert bool(moment.step.prefill) != bool(moment.step.decode)
        assert moment.tokens <= instance.engine.max_num_batched_tokens or moment.step.decode
        if moment.step.decode:
            assert set(moment.step.decode) == moment.can_decode
        blocks = sum(-(-c // instance.engine.block_tokens) for c in moment.context.values())
        assert blocks <= instance.engine.kv_blocks
    assert np.isfinite(simulation.schedule.finish_s).all()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(instance=instances())
def test_the_plain_comparison_is_the_same_step_by_step(instance):
    fast = outcome(instance, make_policy("hybrid", stall="whole"))
    slow = outcome(instance, make_policy("hybrid", stall="whole"), step_by_step=True)
    assert fast[0] == slow[0]
    assert fast[3:] == slow[3:]


# ---- lists


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 5))
def test_lists_are_filled_longest_first_onto_the_client_with_least_to_do(outputs, clients):
    """Against list scheduling by hand: everybody who came together, by own lists only."""
    lists = _lists([(1, o) for o in outputs], clients)
    for request in range(len(outputs)):
        lists.push(request)
    load, owner = [0] * clients, {}
    for request in sorted(range(len(outputs)), key=lambda r: (-outputs[r], r)):
        client = load.index(min(load))
        owner[request] = client
        load[client] += outputs[request]
    served: list[list[int]] = [[] for _ in range(clients)]
    for _ in outputs:
        request = next(r for r, c in lists.stage(clients) if owner[r] == c)
        lists.take(request, owner[request])
        served[owner[request]].append(request)
        lists.left(request)
    for client, mine in enumerate(served):
        expected = [r for r, c in owner.items() if c == client]
        assert [outputs[r] for r in mine] == sorted((outputs[r] for r in expected), reverse=True)


def test_a_client_without_a_list_pulls_the_longest_of_the_others():
    """Two clients, lists of 9 + 2 and 8 + 3; the first is served 9 and 2, then takes what the other has left."""
    lists = _lists([(1, 9), (1, 8), (1, 3), (1, 2)], 2)
    for request in range(4):
        lists.push(request)
    assert lists.stage(9) == [(0, 0), (1, 1)]
    for request, client in lists.stage(9):
        lists.take(request, client)
    lists.left(0)
    assert lists.stage(9) == [(3, 0)]
    lists.take(3, 0)
    lists.left(3)
    assert lists.stage(9) == [(2, 0)]
    assert (lists.head(), len(lists), list(lists)) == (2, 1, [2])


def _lists(lengths, clients) -> ClientLists:
    """Lists over an engine state in which nobody runs."""
    seen = []

    class Look(type(make_policy("hybrid"))):
        def queue(self, state):
            seen.append(state)
            return super().queue(state)

    simulate(toy(lengths, max_num_seqs=clients), Look())
    state = seen[0]
    state._generated[:] = [0] * len(lengths)
    return ClientLists(state)


def test_the_longest_go_first():
    simulation = run([(1, 2), (1, 9), (1, 5)], "hybrid", max_num_seqs=1)
    assert first_service(simulation) == [1, 2, 0]


# ---- when a stage begins

FIXED = StepTime.affine(base_s=1.0, per_prefill_token_s=0.01)
"""A full stage of 100 tokens takes 2 s, so a token costs 0.02 s in company; 50 alone take 1.5 s: half a second too much."""


@pytest.mark.parametrize(
    ("options", "rounds"),
    [({"price": 0.0}, 0), ({}, 1), ({"stall": "whole"}, 1), ({"stall": "whole", "price": 2.0}, 2)],
)
def test_a_stage_begins_when_idle_clients_have_paid_for_the_stall(options, rounds):
    """Three seats. One decodes from 1.01 s on in rounds of a second; another comes in the first of them.

    Its stage would stall one client for 1.5 s, half a second of which is avoidable; two clients idle for 2 s in a round.
    """
    simulation = run(
        [(1, 20), (50, 2)], "hybrid", arrivals=[0.0, 1.5], options=options, step_time=FIXED,
        max_num_seqs=3, max_num_batched_tokens=100,
    )  # fmt: skip
    stage = next(step for step in steps_of(simulation) if step.prefill and step.prefill[0][0] == 1)
    assert stage.start_s == pytest.approx(2.01 + rounds)


def test_nobody_waits_for_a_stage_while_nobody_decodes():
    simulation = run([(50, 1)], "hybrid", step_time=FIXED, options={"stall": "whole", "price": 100.0})
    assert simulation.schedule.first_token_s[0] == pytest.approx(1.5)


# ---- worth


@settings(max_examples=60, deadline=None)
@given(instance=toy_instances())
def test_with_exact_lengths_and_whole_prompts_nobody_is_thrown_out(instance):
    longest = int(instance.requests.prompt_tokens.max())
    if longest <= instance.engine.max_num_batched_tokens:
        assert simulate(instance, "hybrid").metrics.preemptions.sum() == 0


def test_the_paper_s_setting():
    """Known lengths, 200 clients: within 1 % of longest first in mixed steps, and 5 % below first come first served.

    Prompts cost there what they cost, however many come together: waiting until a whole stall is paid is a loss.
    """
    case = catalogue("gsm8k/paper-200-case-0")
    found = {
        name: simulate(case, policy).metrics.makespan_s
        for name, policy in {
            "hybrid": "hybrid",
            "whole": make_policy("hybrid", stall="whole"),
            "lpt": "lpt",
            "fcfs": "vllm-v1",
        }.items()
    }
    assert found["hybrid"] < 1.01 * found["lpt"]
    assert found["hybrid"] < 0.95 * found["fcfs"]
    assert found["whole"] > found["fcfs"]


@pytest.mark.parametrize("options", [{"price": -1}, {"stall": "some"}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        make_policy("hybrid", **options)

"""`simulate`: seeds, moments that coincide, corner cases counted by hand, and what is said of policies that err."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.check import Rule, check
from optimizer.errors import InputError, PolicyError
from optimizer.policies import Policy, make_policy, policy_names
from optimizer.policies.vllm_v1 import VllmV1
from optimizer.problem import Engine, Instance, Requests, StepTime, with_knowledge
from optimizer.simulator import simulate
from tests.policies.toy import instances, run, steps_of, toy

BOTH = pytest.mark.parametrize("step_by_step", [False, True], ids=["by-event", "by-step"])


def as_text(simulation) -> str:
    return json.dumps(simulation.schedule.to_document())


# ---- seeds


@pytest.mark.parametrize("policy", policy_names())
def test_the_same_seed_gives_the_same_bytes(policy):
    """The whole schedule, as it would be written to a file."""
    instance = toy(
        [(9, 12), (30, 3), (4, 20), (17, 8)] * 5, kv_blocks=90, max_num_batched_tokens=64, max_num_seqs=6
    )
    first, again = simulate(instance, policy, seed=3), simulate(instance, policy, seed=3)
    assert as_text(first) == as_text(again)
    assert first.seed == 3


def test_one_policy_object_can_run_twice():
    """It starts anew: nothing is left of the run before, nor of another instance in between."""
    instance = toy([(9, 12), (30, 3), (4, 20)] * 5, kv_blocks=90, max_num_batched_tokens=64, max_num_seqs=6)
    other = toy([(5, 60)] * 9, kv_blocks=200)
    for name in policy_names():
        policy = make_policy(name)
        first = as_text(simulate(instance, policy))
        simulate(other, policy)
        assert as_text(simulate(instance, policy)) == first, name


def test_what_a_simulation_says_of_itself():
    """What was run, with which options, and what it was worth."""
    instance = toy([(3, 2), (4, 1)])
    s = simulate(instance, "vllm-v1", seed=5, options={"watermark": 0.1}, ttft_slo_s=1.0, tpot_slo_s=0.5)
    assert (s.instance, s.policy, s.options, s.seed) == (instance, "vllm-v1", {"watermark": 0.1}, 5)
    assert s.schedule.policy == "vllm-v1"
    assert s.metrics.met_slo.tolist() == [False, True]
    assert s.events >= 2
    assert s.loop_seconds > 0


# ---- moments that coincide, and corner cases


@BOTH
@pytest.mark.parametrize("arrival", [1.0, 1.0 - 1e-9, 1.0 + 1e-9], ids=["at", "before", "after"])
def test_who_arrives_exactly_when_a_step_ends_is_in_the_next_one(arrival, step_by_step):
    """One nanosecond later is one step later."""
    s = run([(5, 4), (5, 1)], "vllm-v1", arrivals=[0.0, arrival], step_by_step=step_by_step)
    first = next(i for i, step in enumerate(steps_of(s)) if (1, 5) in step.prefill)
    assert first == (2 if arrival > 1 else 1)
    assert s.metrics.finish_s.tolist() == [4.0, 3.0 if arrival > 1 else 2.0]


@BOTH
def test_a_request_of_one_token_is_finished_by_its_prompt(step_by_step):
    """It never decodes, and its first token is its last."""
    s = run([(5, 1)], "vllm-v1", step_by_step=step_by_step)
    assert (s.schedule.first_token_s.tolist(), s.schedule.finish_s.tolist()) == ([1.0], [1.0])
    assert len(s.schedule.decode_request) == 0
    assert np.isnan(s.metrics.tpot_s).all()


@BOTH
@pytest.mark.parametrize(("kv_blocks", "fits"), [(2, True), (1, False)])
def test_a_prompt_may_fill_its_blocks_to_the_last_token(kv_blocks, fits, step_by_step):
    """32 tokens in 2 blocks of 16; the token it gives needs no place, as it is never fed back."""
    how = {"kv_blocks": kv_blocks, "block_tokens": 16, "step_by_step": step_by_step}
    if not fits:
        with pytest.raises(InputError, match="needs 2 KV blocks"):
            run([(32, 1)], "vllm-v1", **how)
        return
    s = run([(32, 1)], "vllm-v1", **how)
    assert s.metrics.kv_use_peak == 1.0
    with pytest.raises(InputError, match="needs 3 KV blocks"):
        run([(32, 2)], "vllm-v1", **how)


@BOTH
def test_a_decode_may_fill_the_last_block_to_the_last_token(step_by_step):
    """20 + 13 - 1 tokens are exactly 2 blocks, and nobody is thrown out."""
    s = run([(20, 13)], "vllm-v1", kv_blocks=2, block_tokens=16, step_by_step=step_by_step)
    assert s.metrics.finish_s.tolist() == [13.0]
    assert (s.metrics.kv_use_peak, s.metrics.preemptions.tolist()) == (1.0, [0])


@BOTH
def test_an_engine_with_one_seat_serves_one_after_the_other(step_by_step):
    """Each waits until the one before it is done."""
    s = run([(3, 2), (3, 3), (3, 1)], "vllm-v1", max_num_seqs=1, step_by_step=step_by_step)
    assert s.metrics.first_token_s.tolist() == [1.0, 3.0, 6.0]
    assert s.metrics.finish_s.tolist() == [2.0, 5.0, 6.0]


@BOTH
def test_idle_time_is_skipped_and_lies_between_two_runs(step_by_step):
    """Also before the first arrival."""
    s = run([(3, 2), (3, 1)], "vllm-v1", arrivals=[10.0, 1000.5], step_by_step=step_by_step)
    assert [step.start_s for step in steps_of(s)] == [10.0, 11.0, 1000.5]
    assert (s.metrics.makespan_s, s.metrics.span_s) == (1001.5, 991.5)


@BOTH
def test_a_prompt_longer_than_the_budget_comes_in_chunks_beside_decodes(step_by_step):
    """Each decode costs the prompt one token of the budget."""
    s = run([(2, 9), (20, 1)], "vllm-v1", max_num_batched_tokens=8, max_num_seqs=4, step_by_step=step_by_step)
    assert [dict(step.prefill) for step in steps_of(s)][:4] == [{0: 2, 1: 6}, {1: 7}, {1: 7}, {}]


@BOTH
def test_everything_at_once(step_by_step):
    """A hundred equal requests in one step: one order, the one of the instance."""
    s = run([(4, 3)] * 100, "vllm-v1", step_by_step=step_by_step)
    assert [r for r, _ in steps_of(s)[0].prefill] == list(range(100))
    assert s.metrics.finish_s.tolist() == [3.0] * 100


def test_a_long_decode_is_one_run():
    """Ten thousand steps that do not differ are stored as one, and their time is exact."""
    step_time = StepTime.affine(base_s=0.01, per_decode_context_s=1e-7)
    s = run([(100, 10_001)], "vllm-v1", step_time=step_time)
    assert s.schedule.steps.tolist() == [1, 10_000]
    contexts = sum(range(101, 10_101))
    assert s.metrics.finish_s[0] == pytest.approx(10_001 * 0.01 + contexts * 1e-7, abs=1e-12)
    assert s.events == 2


@settings(deadline=None, max_examples=60)
@given(instances(), st.sampled_from(policy_names()))
def test_whatever_is_simulated_passes_the_checker(instance, policy):
    """Feasible, complete, and true about its own times."""
    try:
        simulation = simulate(instance, policy)
    except PolicyError as error:
        assert "never admits" in str(error)  # noqa: PT017 (vllm-v0's watermark, on the smallest caches)
    else:
        report = check(simulation.schedule, instance)
        assert report, str(report)


def test_a_hundred_thousand_requests_take_seconds():
    """Time is spent per event, not per token, of which there are 20 million."""
    rng = np.random.default_rng(1)
    n = 100_000
    requests = Requests.from_columns(
        {
            "arrival_s": np.cumsum(rng.exponential(0.05, n)),
            "prompt_tokens": rng.integers(1, 400, n),
            "output_tokens": rng.integers(1, 400, n),
        }
    )
    step_time = StepTime.affine(base_s=0.006, per_prefill_token_s=2e-5, per_decode_seq_s=2e-5)
    engine = Engine(name="toy", kv_blocks=20_000, max_num_batched_tokens=512, step_time=step_time)
    start = time.process_time()
    s = simulate(Instance("many", requests, engine))
    took_s = time.process_time() - start
    assert not np.isnan(s.schedule.finish_s).any()
    assert s.metrics.steps > 500_000
    assert s.events < 6 * n
    assert took_s < 20


# ---- what a policy may ask of the simulator


@dataclass
class Patient(Policy):
    """Serves nobody before a moment."""

    name = "patient"
    until_s: float = 0.0

    def step(self, state):
        if state.now_s < self.until_s:
            state.wake_at(self.until_s)
            return
        while state.waiting:
            request = state.waiting.pop()
            state.admit(request)
            state.schedule(request, state.left[request])


@BOTH
@pytest.mark.parametrize(("until_s", "begins"), [(2.25, 2.25), (7.5, 7.5), (0.0, 1.0)])
def test_a_policy_is_woken_at_the_moment_it_asked_for(until_s, begins, step_by_step):
    """Between arrivals, and behind the last one, where nothing else would happen any more."""
    s = run([(4, 1), (4, 1)], Patient(until_s), arrivals=[1.0, 5.0], step_by_step=step_by_step)
    assert s.metrics.first_token_s.tolist() == [begins + 1, max(until_s, 5.0) + 1]


class StartsOver(Policy):
    """Throws everybody out once, and lets nobody run in that step."""

    name = "starts-over"
    asks_always = True

    def start(self, state):
        self.done = False

    def step(self, state):
        if state.now_s >= 2 and not self.done:
            self.done = True
            for request in list(state.running):
                state.preempt(request)
            return
        state.wake_at(2.0)
        while state.waiting:
            request = state.waiting.pop()
            state.admit(request)
            state.schedule(request, state.left[request])


@BOTH
def test_a_policy_that_threw_everybody_out_is_asked_again_at_once(step_by_step):
    """No time passes, and it is no deadlock; each computes its prompt and what it had generated anew."""
    s = run([(5, 4), (3, 4)], StartsOver(), step_by_step=step_by_step)
    steps = steps_of(s)
    assert steps[2] == (2.0, ((1, 5), (0, 7)), (), (0, 1))
    assert s.metrics.finish_s.tolist() == [4.0, 4.0]


class NeverComesBack(StartsOver):
    """Throws everybody out at 2 s, and nobody comes in again."""

    def step(self, state):
        if not self.done:
            super().step(state)


@BOTH
def test_a_policy_that_threw_everybody_out_is_asked_again_only_once(step_by_step):
    """If it then lets nobody run either, that is a deadlock and no endless loop."""
    with pytest.raises(
        PolicyError, match=r"starts-over is deadlocked at 2.000000 s: .*request 1 waits first, 0 hold KV"
    ):
        run([(5, 4), (3, 4)], NeverComesBack(), step_by_step=step_by_step)


class Watched(VllmV1):
    """vllm-v1 that counts all blocks after every step it composed; nothing is shared between requests."""

    def step(self, state):
        super().step(state)
        self.thrown_out = state.preemptions
        if state.tight:
            chunks = dict(state.chunks)
            used = sum(-(-(state.context(r) + chunks.get(r, 0)) // state.block_tokens) for r in state.running)
            assert state.free_blocks() == state.blocks - used - state.decode_need()


@settings(deadline=None, max_examples=150)
@given(instances(), st.sampled_from([0, 1, 3]), st.booleans(), st.booleans())
def test_no_block_is_lost_or_found_where_requests_are_thrown_out(instance, threshold, caching, step_by_step):
    """Blocks put aside for the decode of somebody who is then thrown out are free again, once."""
    policy = Watched(long_prefill_token_threshold=threshold)
    engine = instance.engine.replace(prefix_caching=caching)
    simulate(Instance("watched", instance.requests, engine), policy, step_by_step=step_by_step)


@BOTH
@pytest.mark.parametrize("caching", [True, False])
def test_a_block_put_aside_for_who_is_thrown_out_is_free_again(caching, step_by_step):
    """10 blocks of one token; request 1 decodes while 0, before it, still prefills and needs its block."""
    policy = Watched(long_prefill_token_threshold=2)
    s = run([(8, 1), (2, 4)], policy, kv_blocks=10, max_num_batched_tokens=4, max_num_seqs=2,
            prefix_caching=caching, step_by_step=step_by_step)  # fmt: skip
    assert policy.thrown_out == 1
    assert [step.preempted for step in steps_of(s)][:4] == [(), (), (), (1,)]
    assert s.metrics.finish_s[0] == 4.0


# ---- policies that err


class Greedy(Policy):
    """Admits all that it can, whole."""

    name = "greedy"

    def step(self, state):
        while state.waiting and len(state.running) < state.max_num_seqs:
            request = state.waiting.pop()
            state.admit(request)
            state.schedule(request, state.left[request])


class SeatsExceeded(Greedy):
    def step(self, state):
        while state.waiting:
            state.admit(state.waiting.pop())


class AdmitsTwice(Greedy):
    def step(self, state):
        request = state.waiting.pop()
        state.admit(request)
        state.admit(request)


class ChunkTooLong(Greedy):
    def step(self, state):
        request = state.waiting.pop()
        state.admit(request)
        state.schedule(request, state.left[request] + 1)


class ChunkOfNothing(Greedy):
    def step(self, state):
        request = state.waiting.pop()
        state.admit(request)
        state.schedule(request, 0)


class ChunkWithoutSeat(Greedy):
    def step(self, state):
        state.schedule(state.waiting.head(), 1)


class SecondChunkTooLong(Greedy):
    """Two chunks of one request in one step: together they are more than is left."""

    def step(self, state):
        while state.waiting:
            state.admit(state.waiting.pop())
        for request in state.prefilling:
            state.schedule(request, 4)


class GreedyWithoutBudget(Greedy):
    has_budget = False


class AdmitsTheFuture(Greedy):
    def step(self, state):
        state.admit(1)


class PreemptsWhomItServes(Greedy):
    def step(self, state):
        super().step(state)
        state.preempt(state.chunks[0][0])


class PreemptsWhoWaits(Greedy):
    def step(self, state):
        state.preempt(state.waiting.head())


class HoldsBackWhoPrefills(Greedy):
    def step(self, state):
        super().step(state)
        state.hold_back(0)


class TakesDecodeBlocks(Greedy):
    """Lets decodes take their blocks, whether these are there or not."""

    asks_always = True

    def step(self, state):
        super().step(state)
        state.take_decode_blocks()


class RaisesOnFinish(Greedy):
    def finished(self, state, request):
        raise RuntimeError(f"request {request} is done")


class RaisesOnStart(Greedy):
    def start(self, state):
        raise LookupError("nothing there")


class StallsForever(Greedy):
    asks_always = True

    def step(self, state):
        super().step(state)
        state.stalled = not state.chunks


class HoldsBackForever(Greedy):
    asks_always = True

    def step(self, state):
        super().step(state)
        for request in list(state.running):
            if state.is_decoding(request):
                state.hold_back(request)


@BOTH
@pytest.mark.parametrize(
    ("policy", "lengths", "engine", "said"),
    [
        (SeatsExceeded(), [(4, 2)] * 3, {"max_num_seqs": 2},
         "request 2 cannot be admitted at 0.000000 s: all 2 seats are taken"),
        (AdmitsTwice(), [(4, 2)], {}, "request 0 cannot be admitted at 0.000000 s: it runs already"),
        (ChunkTooLong(), [(4, 2)], {}, "a chunk of 5 tokens for request 0 at 0.000000 s: it has 4 left and is admitted"),
        (ChunkOfNothing(), [(4, 2)], {}, "a chunk of 0 tokens for request 0 at 0.000000 s: it has 4 left"),
        (ChunkWithoutSeat(), [(4, 2)], {}, "a chunk of 1 tokens for request 0 .* is not admitted"),
        (SecondChunkTooLong(), [(6, 2)], {}, "a chunk of 4 tokens for request 0 at 1.000000 s: it has 2 left"),
        (Greedy(), [(20, 2)] * 2, {"max_num_batched_tokens": 32, "max_num_seqs": 4},
         "greedy composed a step at 0.000000 s, from request 0 on, of 40 tokens; the token budget is 32"),
        (Greedy(), [(20, 9)] * 2, {"kv_blocks": 5, "block_tokens": 8},
         "greedy composed a step at 0.000000 s, .* takes more KV blocks than there are: 0 decodes need 0"),
        (Greedy(), [(20, 9)] * 2, {"kv_blocks": 7, "block_tokens": 8},
         "greedy composed a step at 5.000000 s, .*: 2 decodes need 2, and of 7 blocks 1 are free; preempt"),
        (GreedyWithoutBudget(), [(900, 1)] * 8, {"kv_blocks": 4000, "max_num_batched_tokens": 512},
         "greedy composed a step at 0.000000 s, from request 0 on, that takes more KV blocks than there are"),
        (Greedy(), [(8, 2)] * 2, {"kv_blocks": 13, "prefix_caching": True},
         "request 1 cannot compute 8 tokens at 0.000000 s: that takes 8 KV blocks, and 5 are free; preempt, or"),
        (TakesDecodeBlocks(), [(8, 9)] * 2, {"kv_blocks": 17, "prefix_caching": True},
         "the 2 decodes at 1.000000 s, from request 0 on, take 2 KV blocks, and 1 are free; preempt before"),
        (AdmitsTheFuture(), [(4, 2)] * 2, {"arrivals": [0, 30]},
         "request 1 cannot be admitted at 0.000000 s: it has not arrived yet; admit only who is in `waiting`"),
        (PreemptsWhomItServes(), [(4, 2)], {},
         "request 0 cannot be preempted at 0.000000 s: it has a chunk in this step; preempt before scheduling"),
        (PreemptsWhoWaits(), [(4, 2)], {}, "request 0 cannot be preempted at 0.000000 s: it does not run"),
        (HoldsBackWhoPrefills(), [(4, 2)], {}, "request 0 cannot be held back at 0.000000 s: it does not decode"),
        (RaisesOnFinish(), [(4, 2)], {}, "greedy raised RuntimeError at [0-2].000000 s: request 0 is done"),
        (RaisesOnStart(), [(4, 2)], {}, "greedy raised LookupError at 0.000000 s: nothing there"),
        (StallsForever(), [(4, 2)], {},
         "greedy is deadlocked at 1.000000 s: .* 1 requests are not finished; nobody waits, 1 hold KV"),
        (HoldsBackForever(), [(4, 2)] * 2, {}, "greedy is deadlocked at 1.000000 s: .*; nobody waits, 2 hold KV"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Policy) else "",
)  # fmt: skip
def test_what_cannot_be_done_is_an_error_of_the_policy(policy, lengths, engine, said, step_by_step):
    """Who, when, which request, what was asked for and what there is; the same in both modes."""
    with pytest.raises(PolicyError, match=said):
        run(lengths, policy, step_by_step=step_by_step, **engine)


@BOTH
def test_a_step_beyond_what_tightness_covers_may_still_fit(step_by_step):
    """Eight prompts at once are more than budget and longest request, and the cache holds them."""
    s = run(
        [(900, 1)] * 8,
        GreedyWithoutBudget(),
        kv_blocks=7200,
        max_num_batched_tokens=512,
        step_by_step=step_by_step,
    )
    assert s.metrics.finish_s.tolist() == [1.0] * 8


def test_options_belong_to_a_policy_named_by_text():
    """One that is made already has its own: what is given beside it is no silent wish."""
    with pytest.raises(InputError, match="patient is made already; make it with its options: until_s"):
        simulate(toy([(4, 1)]), Patient(), options={"until_s": 3.0})
    assert simulate(toy([(4, 1)]), Patient(3.0), options={}).metrics.finish_s.tolist() == [4.0]


@BOTH
def test_requests_go_by_their_names_in_errors(step_by_step):
    """By the ids of the instance, where it has some."""
    requests = Requests.from_columns({"prompt_tokens": [4], "output_tokens": [2], "ids": ["chat-7"]})
    engine = Engine(name="toy", kv_blocks=9, step_time=StepTime.affine(base_s=1.0))
    with pytest.raises(PolicyError, match="request chat-7 cannot be admitted"):
        simulate(Instance("x", requests, engine), AdmitsTwice(), step_by_step=step_by_step)


@dataclass
class ThrowsOut(Policy):
    """Computes one token of a prompt and throws it out, over and over; now and then it lets something be done."""

    name = "throws-out"
    asks_always = True
    patience: int = 10**9
    times: int = 0

    def step(self, state):
        request = state.waiting.pop() if state.waiting else next(iter(state.running))
        if request in state.running:
            state.preempt(request)
            state.waiting.pop()
            self.times += 1
        state.admit(request)
        state.schedule(request, state.left[request] if self.times % self.patience == self.patience - 1 else 1)


@BOTH
def test_a_livelock_is_noticed_and_slow_progress_is_none(step_by_step):
    """A thousand preemptions and some without anything done are a livelock; a prompt done in between is not."""
    with pytest.raises(
        PolicyError, match=r"throws-out is livelocked at .* request finished in between"
    ) as caught:
        run([(9, 2)], ThrowsOut(), max_num_seqs=1, step_by_step=step_by_step)
    assert 1000 < int(re.search(r"(\d+) preemptions", str(caught.value))[1]) < 1100
    s = run([(9, 4)], ThrowsOut(patience=900), max_num_seqs=1, step_by_step=step_by_step)
    assert s.metrics.preemptions.sum() > 2000


def test_the_garbage_collector_is_left_as_it_was():
    """It rests during the loop, also when that fails."""
    import gc

    seen = []

    class Looks(Greedy):
        def step(self, state):
            seen.append(gc.isenabled())
            super().step(state)

    for on in (True, False):
        (gc.enable if on else gc.disable)()
        try:
            run([(4, 2)], Looks())
            with pytest.raises(PolicyError):
                run([(4, 2)], AdmitsTwice())
            assert gc.isenabled() is on
        finally:
            gc.enable()
    assert not any(seen)


def test_an_engine_without_preemption():
    """The simulator refuses to throw out, and a schedule that did all the same is found."""
    engine = Engine(name="tight", kv_blocks=5, block_tokens=4, step_time=StepTime.affine(base_s=0.01))
    requests = Requests.from_columns({"prompt_tokens": [8, 8], "output_tokens": [8, 8]})
    instance = Instance("two", with_knowledge(requests, "exact"), engine)
    never = Instance("two", instance.requests, engine.replace(preemption="none"))
    thrown = simulate(instance, "vllm-v1")
    assert thrown.metrics.preemptions.sum() > 0
    assert {v.rule for v in check(thrown.schedule, never).violations} == {Rule.PREEMPTION}
    with pytest.raises(PolicyError, match="allows no preemption"):
        simulate(never, "vllm-v1")
    assert check(simulate(never, "svf").schedule, never).ok

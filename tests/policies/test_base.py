"""The registry, options, a policy as a user writes one, and what is said of policies that break."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings

from optimizer.check import check
from optimizer.errors import InputError, PolicyError
from optimizer.policies import Policy, base, describe, make_policy, options_of, policy_names, register
from optimizer.simulator import simulate
from optimizer.simulator.queues import KeyQueue
from tests.policies.toy import first_service, instances, run, same_schedule, steps_of

BOTH = pytest.mark.parametrize("step_by_step", [False, True], ids=["by-event", "by-step"])


@pytest.mark.parametrize("name", policy_names())
def test_every_policy_describes_itself_and_is_built_from_its_options(name):
    """A description of one line, and defaults that make the same policy again, also given as text."""
    assert describe(name).endswith((".", ","))
    assert "\n" not in describe(name)
    options = options_of(name)
    assert make_policy(name, **options) == make_policy(name)
    assert make_policy(name, **{k: str(v) for k, v in options.items()}) == make_policy(name)
    assert make_policy(name).name == name


def test_text_becomes_the_type_of_the_default():
    """Options come from a command line: numbers and yes or no are read, whole ones stay whole."""
    assert make_policy("vllm-v0", watermark="0.05").watermark == 0.05
    assert make_policy("orca-max", contiguous="no", max_sequence_tokens="512") == make_policy(
        "orca-max", contiguous=False, max_sequence_tokens=512
    )
    assert make_policy("past-future", history=100.0).history == 100


def test_an_unknown_policy_is_met_with_the_nearest():
    """A slip of the finger finds the policy that was meant."""
    with pytest.raises(InputError, match=r"no policy 'vlm-v1'; did you mean vllm-v1") as caught:
        make_policy("vlm-v1")
    assert caught.value.field == "policy"
    with pytest.raises(InputError, match="no policy 'xyz'"):
        describe("xyz")
    with pytest.raises(InputError, match="no policy 'xyz'"):
        options_of("xyz")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vllm-v0", {"water": 0.1}, r"vllm-v0 has no option 'water'; it has: watermark=0.01"),
        ("vllm-v0", {"watermark": "much"}, r"'much' for vllm-v0's watermark; expected float, such as 0.01"),
        ("vllm-v1", {"long_prefill_token_threshold": 2.5}, r"2.5 for .* expected int, such as 0"),
        ("vllm-v1", {"long_prefill_token_threshold": "2.5"}, r"'2.5' for .* expected int"),
        ("orca-max", {"contiguous": "perhaps"}, r"'perhaps' for .* expected bool, such as True"),
        ("orca-max", {"max_sequence_tokens": None}, r"None for .* expected int"),
        ("vllm-v0", {"watermark": 1.0}, r"1.0 for vllm-v0's watermark; expected a share from 0 to below 1"),
        ("sarathi-serve", {"watermark": -0.1}, r"-0.1 for sarathi-serve's watermark; expected a share"),
        ("sarathi", {"watermark": "nan"}, r"nan.* for sarathi's watermark; expected"),
        (
            "orca-max",
            {"max_sequence_tokens": 0},
            r"0 for orca-max's max_sequence_tokens; expected at least 1",
        ),
        (
            "fastertransformer",
            {"max_batch_size": -1},
            r"-1 for fastertransformer's max_batch_size; expected a size",
        ),
        ("lightllm", {"max_wait_steps": 0}, r"0 for lightllm's max_wait_steps; expected at least 1"),
        (
            "lightllm",
            {"router_token_ratio": -1.0},
            r"-1.0 for lightllm's router_token_ratio; expected a share",
        ),
        ("past-future", {"max_wait_steps": 0}, r"0 for past-future's max_wait_steps; expected at least 1"),
        ("past-future", {"history": 1}, r"1 for past-future's history; expected at least 2"),
        ("past-future", {"samples": 0}, r"0 for past-future's samples; expected at least 1"),
        ("past-future", {"reserve": 1.0}, r"1.0 for past-future's reserve; expected a share"),
    ],
)
def test_wrong_options_are_named(name, options, said):
    """What the option is called, what was given, and what was expected."""
    with pytest.raises(InputError, match=said) as caught:
        make_policy(name, **options)
    assert caught.value.field == "policy-option"


def test_two_policies_of_one_name_are_refused():
    """A name that is taken stays with whom it belongs to."""
    with pytest.raises(ValueError, match="two policies are called 'vllm-v1'"):
        register("vllm-v1")(Policy)
    assert policy_names().count("vllm-v1") == 1


@dataclass
class LastComeFirstServed(Policy):
    """Last come first served: whole prompts beside decodes, the newest first, never more than fits.

    `spare_blocks`: blocks that stay free.
    """

    spare_blocks: int = 0

    def queue(self, state):
        return KeyQueue(lambda request: -request)

    def step(self, state):
        longest = max(c + p for c, p in zip(state.cap, state.prompt_tokens, strict=True))
        whole_life = -(-longest // state.block_tokens) + self.spare_blocks
        budget = state.token_budget - state.num_decoding
        while state.waiting and len(state.running) < state.max_num_seqs:
            tokens = state.left[state.waiting.head()]
            if (len(state.running) + 1) * whole_life > state.blocks and state.running:
                break
            if tokens > budget and (state.chunks or state.num_decoding):
                break
            request = state.waiting.pop()
            state.admit(request)
            state.schedule(request, tokens)
            budget -= tokens


@pytest.fixture
def lcfs():
    """Register a user's policy for one test."""
    register("lcfs")(LastComeFirstServed)
    yield "lcfs"
    del base._REGISTRY["lcfs"]


def test_a_policy_of_ones_own_is_found_by_its_name(lcfs):
    """Registered once, it is listed, described, takes options, runs by name, and serves the newest first."""
    assert policy_names()[-1] == lcfs
    assert describe(lcfs).startswith("Last come first served")
    assert options_of(lcfs) == {"spare_blocks": 0}
    simulation = run(
        [(5, 3)] * 4, lcfs, arrivals=[0, 1, 1, 1], caps=[3] * 4, max_num_seqs=1, options={"spare_blocks": "2"}
    )
    assert simulation.policy == "lcfs"
    assert first_service(simulation) == [0, 3, 2, 1]


def test_the_registry_forgets_what_a_test_registered():
    """The fixture leaves nothing behind."""
    assert "lcfs" not in policy_names()


@settings(max_examples=60, deadline=None)
@given(instance=instances(pressure=False, least_budget=512))
def test_a_policy_of_ones_own_is_the_same_step_by_step(instance):
    """A plain policy without promises gives one schedule in both modes, and the checker agrees to it."""
    policy = LastComeFirstServed()
    policy.name = "lcfs"
    fast, slow = (simulate(instance, policy, step_by_step=mode).schedule for mode in (False, True))
    assert same_schedule(fast, slow)
    assert check(fast, instance)


class Broken(Policy):
    """A policy that does one thing wrong."""

    name = "broken"

    def admit_all(self, state):
        while state.waiting and len(state.running) < state.max_num_seqs:
            request = state.waiting.pop()
            state.admit(request)
            state.schedule(request, state.left[request])


class Raises(Broken):
    def step(self, state):
        if state.now_s >= 2:
            raise ZeroDivisionError("division by nothing")
        self.admit_all(state)


class NeverAdmits(Broken):
    def step(self, state):
        pass


class Overdraws(Broken):
    def step(self, state):
        self.admit_all(state)


class PreemptsForever(Broken):
    def step(self, state):
        for request in list(state.running):
            state.preempt(request)
        request = state.waiting.pop()  # the one just thrown out: the other one waits for good
        state.admit(request)
        state.schedule(request, 1)


@BOTH
def test_a_policy_that_raises_is_named_with_what_it_raised_and_when(step_by_step):
    """The error says which policy, which exception, and at which moment; the cause hangs on it."""
    with pytest.raises(
        PolicyError, match=r"broken raised ZeroDivisionError at 2.000000 s: division by"
    ) as caught:
        run([(1, 1), (1, 1)], Raises(), arrivals=[0, 2], step_by_step=step_by_step)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@BOTH
def test_a_deadlock_is_named_with_moment_and_request(step_by_step):
    """Nothing runs, nothing is to come: who waits first, since when nothing happens, and how many are left."""
    said = r"broken is deadlocked at 3.000000 s: .* 2 requests are not finished; request 0 waits first, 0 hold KV"
    with pytest.raises(PolicyError, match=said):
        run([(1, 1), (1, 1)], NeverAdmits(), arrivals=[0, 3], step_by_step=step_by_step)


@BOTH
@pytest.mark.parametrize(
    ("lengths", "moment"), [([(8, 2), (8, 2)], "0.000000 s"), ([(4, 9), (4, 9)], "3.000000 s")]
)
def test_overdrawn_blocks_are_named_with_the_moment(lengths, moment, step_by_step):
    """Prompts, or decodes, that take more blocks than are free are an error of the policy, at that step."""
    with pytest.raises(PolicyError, match=f"broken .* {moment}.* blocks"):
        run(lengths, Overdraws(), kv_blocks=13, step_by_step=step_by_step)


@BOTH
def test_a_livelock_is_named_with_moment_and_request(step_by_step):
    """A policy that throws its request out before every step gets nowhere, and that is noticed."""
    said = r"broken is livelocked at \d+\.0+ s: \d+ preemptions and not one prompt completed .*request 1 waits first"
    with pytest.raises(PolicyError, match=said):
        run([(5, 5), (5, 5)], PreemptsForever(), step_by_step=step_by_step)


def test_steps_of_a_broken_run_are_not_returned():
    """A run that fails gives no schedule: the same policy on an instance with room gives one."""
    assert len(steps_of(run([(8, 2), (8, 2)], Overdraws(), kv_blocks=18))) == 2

"""The toy of the paper's setting, worked out by hand, and all small instances against exhaustive search."""

import dataclasses
from functools import cache
from itertools import combinations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.formulations.hybrid import build
from optimizer.formulations.stages import Bin, Stages
from optimizer.problem import Engine, Instance, Requests, StepTime
from optimizer.solvers import milp
from optimizer.solvers.result import Status

TOY = Stages(
    prompt=(60, 50, 40, 60, 30, 20),
    output=(3, 9, 4, 8, 2, 6),
    clients=2,
    round_s=1.0,
    levels=((64, 2.0), (128, 3.0), (256, 5.0)),
)
LONGEST_FIRST = sorted(range(6), key=lambda i: -TOY.output[i])


def solve(stages, known=None):
    model = build(stages, known)
    return milp.run(model.problem, model.read, time_limit_s=120)


def by_search(stages):
    """The least makespan, by trying every set of prompts and every number of rounds."""

    @cache
    def rest(waiting, left):
        if not waiting:
            # Nothing to decide any more: no later bin.
            return stages.round_s * max((tokens for _, tokens in left), default=0)
        best = float("inf")
        for size in range(1, stages.clients - len(left) + 1):
            for chosen in combinations(waiting, size):
                tokens = sum(stages.prompt[i] for i in chosen)
                if tokens > stages.levels[-1][0]:
                    continue
                active = (*left, *((i, stages.output[i]) for i in chosen))
                others = tuple(i for i in waiting if i not in chosen)
                last = max(own for _, own in active)
                for rounds in [last] if not others else range(last + 1):
                    held = sum(
                        stages.prompt[i] + stages.output[i] - max(0, own - rounds) for i, own in active
                    )
                    if stages.kv_tokens is not None and held > stages.kv_tokens:
                        continue
                    after = tuple(sorted((i, own - rounds) for i, own in active if own > rounds))
                    taken = stages.prefill_s(chosen) + stages.round_s * rounds
                    best = min(best, taken + (rest(others, after) if others else 0.0))
        return best

    return rest(tuple(range(len(stages.prompt))), ())


@pytest.mark.parametrize(
    ("order", "patience", "seconds", "occupancy"),
    [
        (None, None, 28, 0.821),
        (LONGEST_FIRST, None, 27, 0.852),
        (None, 0.5, 27, None),
        (LONGEST_FIRST, 0.5, 26, 0.923),
    ],
)
def test_the_rules_on_the_toy(order, patience, seconds, occupancy):
    plan = TOY.eager(order, patience)
    TOY.check(plan)
    assert TOY.seconds(plan) == seconds
    if occupancy is not None:
        assert TOY.occupancy(plan) == pytest.approx(occupancy, abs=5e-4)


def test_the_work_bound_of_the_toy():
    assert TOY.work_bound == pytest.approx(16 + 260 * 5 / 256)
    assert round(TOY.work_bound, 2) == 21.08


def test_the_optimum_of_the_toy_is_26():
    assert by_search(TOY) == 26
    done = solve(TOY)
    assert (done.status, done.stopped_by) == (Status.OPTIMAL, "proof")
    assert done.value == pytest.approx(26)
    assert TOY.seconds(done.solution) == 26
    TOY.check(done.solution)


@st.composite
def small(draw):
    n = draw(st.integers(1, 5))
    prompt = tuple(draw(st.lists(st.integers(1, 30), min_size=n, max_size=n)))
    output = tuple(draw(st.lists(st.integers(1, 5), min_size=n, max_size=n)))
    sizes = sorted({max(prompt), *draw(st.lists(st.integers(10, 80), max_size=2))})
    times, at = [], 0.0
    for _ in sizes:
        at += draw(st.sampled_from([0.5, 1.0, 2.0]))
        times.append(at)
    most = max(p + o for p, o in zip(prompt, output, strict=True))
    kv = draw(st.none() | st.integers(most, 2 * most))
    return Stages(prompt, output, draw(st.integers(1, 3)), 1.0, tuple(zip(sizes, times, strict=True)), kv)


@settings(max_examples=25, deadline=None)
@given(small())
# A bin without a prompt would set the count of KV back in the middle of a decode stage.
@example(Stages((1, 1, 1, 1, 2), (1, 1, 1, 2, 1), clients=2, round_s=1.0, levels=((2, 0.5),), kv_tokens=4))
def test_the_model_finds_what_exhaustive_search_finds(stages):
    done = solve(stages)
    assert done.status is Status.OPTIMAL
    assert done.value == pytest.approx(by_search(stages))
    stages.check(done.solution)
    assert stages.seconds(done.solution) <= done.value + 1e-6


@given(small(), st.randoms(use_true_random=False), st.none() | st.floats(0, 3))
def test_every_rule_gives_a_plan_above_the_bound(stages, rng, patience):
    order = list(range(len(stages.prompt)))
    rng.shuffle(order)
    plan = stages.eager(order, patience)
    stages.check(plan)
    assert stages.seconds(plan) >= stages.work_bound - 1e-9


def test_a_poor_start_leads_to_the_same_optimum():
    toy = Stages((60, 50, 40), (3, 4, 3), 2, 1.0, ((64, 2.0), (128, 3.0)))
    one_by_one = tuple(Bin((i,), toy.output[i]) for i in range(3))
    assert toy.seconds(one_by_one) == 16
    assert solve(toy, one_by_one).value == pytest.approx(by_search(toy))


def test_kv_memory_binds():
    tight = dataclasses.replace(TOY, kv_tokens=69)
    # No two of the long prompts go together any more.
    assert by_search(dataclasses.replace(TOY, kv_tokens=200)) == 26
    assert solve(
        dataclasses.replace(tight, prompt=TOY.prompt[:3], output=TOY.output[:3])
    ).value == pytest.approx(22)


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        ((Bin((0, 1), 4),), "every request once"),
        ((Bin((0, 1, 2), 4),), "bin 0 of the plan has 3 requests"),
        ((Bin((0, 1), 3), Bin((2,), 2)), "ends before request 2"),
        ((Bin((0, 1), 1), Bin((2,), 9)), "bin 1 of the plan has 3 requests"),
    ],
)
def test_what_is_no_plan_is_refused(plan, why):
    toy = Stages((60, 50, 40), (3, 4, 3), 2, 1.0, ((64, 2.0), (256, 3.0)))
    with pytest.raises(InputError, match=why):
        build(toy, plan)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"output": (3,)}, "6 prompts and 1 outputs"),
        ({"clients": 0}, "clients"),
        ({"round_s": 0.0}, "round_s"),
        ({"levels": ((64, 2.0), (128, 2.0))}, "ascending in both"),
        ({"levels": ((32, 2.0),)}, "request 0 has 60 prompt tokens .* add a level"),
        ({"kv_tokens": 67}, "request 3 holds 68 tokens at its end"),
    ],
)
def test_bad_input_says_what_would_do(changes, why):
    with pytest.raises(InputError, match=why):
        dataclasses.replace(TOY, **changes)


def test_stages_of_an_engine():
    instance = Instance(
        "toy",
        Requests.from_columns({"prompt_tokens": [100, 100], "output_tokens": [10, 20]}),
        Engine(
            name="toy",
            kv_blocks=99,
            max_num_batched_tokens=300,
            max_num_seqs=8,
            step_time=StepTime.affine(base_s=0.01, per_prefill_token_s=1e-4, per_decode_seq_s=1e-3),
        ),
    )
    stages = Stages.from_instance(instance, kv=True)
    assert (stages.clients, stages.kv_tokens) == (2, 1584)
    assert stages.round_s == pytest.approx(0.012)
    assert [tokens for tokens, _ in stages.levels] == [64, 128, 256, 300]
    assert [time for _, time in stages.levels] == pytest.approx([0.0164, 0.0228, 0.0356, 0.04])

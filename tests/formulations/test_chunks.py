import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.capacity.step_time import StepClock
from optimizer.errors import InputError
from optimizer.formulations.chunks import solve
from optimizer.problem import Engine, StepPiece, StepRegime, StepTime
from optimizer.solvers.result import Status
from optimizer.units import seconds, ticks


def engine(*pieces, **limits):
    step_time = StepTime(regimes=(StepRegime(pieces=tuple(StepPiece(**p) for p in pieces)),))
    return Engine(name="toy", kv_blocks=9999, step_time=step_time, **limits)


def by_search(machine, prompts, cached, decoding, tbt_s, objective):
    """The least cost of all ways to cut the prompts, token by token; None where there is none."""
    clock, limit = StepClock(machine.step_time), ticks(tbt_s)

    @cache
    def rest(prompt, done, contexts):
        if prompt == len(prompts):
            return 0
        best, chunks, seats = None, [], len(contexts)
        tokens = attention = context = 0
        own, low, now = prompt, done, done
        growing = tuple(c + 1 for c in contexts)
        while own < len(prompts) and tokens + 1 + seats <= machine.max_num_batched_tokens:
            tokens, attention, now = tokens + 1, attention + now + 1, now + 1
            finished = now == prompts[own]
            taken = clock.step(tokens, attention, len(chunks) + 1, context + now, seats, sum(growing))
            after = (own + 1, cached[own + 1] if own + 1 < len(prompts) else 0) if finished else (own, now)
            if finished:
                chunks.append((own, now - low))
                context += now
                own, low = own + 1, cached[own + 1] if own + 1 < len(prompts) else 0
                now = low
                ended = growing + tuple(prompts[i] for i, _ in chunks)
            else:
                ended = growing + tuple(prompts[i] for i, _ in chunks)
            if taken <= limit:
                further = rest(*after, tuple(sorted(ended)))
                if further is not None:
                    weight = 1 if objective == "prefill-time" else len(prompts) - prompt
                    cost = weight * taken + further
                    best = cost if best is None else min(best, cost)
        return best

    found = rest(0, cached[0], tuple(sorted(decoding)))
    return None if found is None else seconds(found)


@st.composite
def cases(draw):
    rate = st.sampled_from([0.0, 0.0001, 0.001, 0.01])
    pieces = [
        StepPiece(
            base_s=draw(st.sampled_from([0.001, 0.01, 0.02])),
            per_prefill_token_s=draw(rate),
            per_prefill_attention_s=draw(rate),
            per_prefill_seq_s=draw(rate),
            per_prefill_context_s=draw(rate),
            per_decode_seq_s=draw(rate),
            per_decode_context_s=draw(rate),
        )
        for _ in range(3)
    ]
    # A mixed step of many tokens may be faster than one of fewer: regimes need not agree where they meet.
    step_time = StepTime(
        regimes=(
            StepRegime(pieces=tuple(pieces[:2])),
            StepRegime(phase="mixed", min_tokens=draw(st.integers(2, 6)), pieces=(pieces[2],)),
        )
    )
    prompts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    return (
        Engine(
            name="toy",
            kv_blocks=99,
            step_time=step_time,
            max_num_batched_tokens=draw(st.integers(8, 12)),
            max_num_seqs=8,
        ),
        prompts,
        [draw(st.integers(0, p - 1)) for p in prompts],
        draw(st.lists(st.integers(1, 9), max_size=3)),
        draw(st.sampled_from([0.01, 0.03, 0.06, 0.2])),
        draw(st.sampled_from(["prefill-time", "ttft"])),
    )


@settings(max_examples=150, deadline=None)
@given(cases())
def test_labels_find_what_exhaustive_search_finds(case):
    machine, prompts, cached, decoding, tbt_s, objective = case
    best = by_search(*case)
    done = solve(
        machine, prompts, tbt_s=tbt_s, decoding=decoding, cached=cached, objective=objective, granule=1
    )
    if best is None:
        assert done.status is Status.INFEASIBLE
        assert done.message
        return
    assert (done.status, done.value, done.bound) == (Status.OPTIMAL, pytest.approx(best), done.value)
    plan = done.solution
    assert max(plan.step_s) <= tbt_s + 1e-12
    for i, tokens in enumerate(prompts):
        assert sum(n for step in plan.steps for p, n in step if p == i) == tokens - cached[i]
    objective_value = sum(plan.ttft_s) if objective == "ttft" else plan.ttft_s[-1]
    assert objective_value == pytest.approx(done.value)
    assert plan.ttft_s[-1] == pytest.approx(sum(plan.step_s))


def test_a_dearer_way_with_less_context_may_be_the_best_in_the_end():
    rates = {
        "per_prefill_token_s": 0.01,
        "per_prefill_attention_s": 0.0005,
        "per_prefill_seq_s": 0.005,
        "per_decode_seq_s": 0.001,
        "per_decode_context_s": 0.002,
    }
    machine = engine({"base_s": 0.005, **rates}, max_num_batched_tokens=12, max_num_seqs=8)
    case = (machine, [1, 4, 7], [0, 0, 0], [], 0.1, "ttft")
    assert solve(machine, [1, 4, 7], tbt_s=0.1, objective="ttft", granule=1).value == pytest.approx(
        by_search(*case)
    )


def test_a_dearer_way_with_less_context_may_be_the_only_one():
    rates = {
        "per_prefill_attention_s": 0.005,
        "per_prefill_seq_s": 0.002,
        "per_prefill_context_s": 0.01,
        "per_decode_context_s": 0.005,
    }
    machine = engine({"base_s": 0.005, **rates}, max_num_batched_tokens=12, max_num_seqs=8)
    best = by_search(machine, [2, 3, 7], [0, 1, 1], [3], 0.2, "ttft")
    done = solve(machine, [2, 3, 7], tbt_s=0.2, decoding=[3], cached=[0, 1, 1], objective="ttft", granule=1)
    assert done.value == pytest.approx(best)


def test_chunks_that_ride_free_under_the_floor():
    # The weights take 10 ms; 50 tokens a step cost nothing beside that, so no step is worth being longer.
    machine = engine({"base_s": 0.01}, {"base_s": 0.0, "per_prefill_token_s": 2e-4})
    done = solve(machine, [200], tbt_s=1.0, decoding=[10], granule=10)
    assert done.value == pytest.approx(0.04)


def test_a_rest_that_wastes_the_floor_is_shared_out():
    # The largest chunks are 100 and 4 tokens, and 4 tokens take as long as 5: 20 + 10.5 ms instead of 30.4.
    machine = engine({"base_s": 0.0105}, {"base_s": 0.01, "per_prefill_token_s": 1e-4})
    assert solve(machine, [104], tbt_s=0.02, granule=1).value == pytest.approx(0.0304)


def test_the_first_of_two_prompts_goes_alone_where_its_first_token_counts():
    machine = engine({"base_s": 0.001, "per_prefill_token_s": 1e-3})
    together = solve(machine, [10, 10], tbt_s=1.0, granule=10)
    apart = solve(machine, [10, 10], tbt_s=1.0, granule=10, objective="ttft")
    assert [len(step) for step in together.solution.steps] == [2]
    assert [len(step) for step in apart.solution.steps] == [1, 1]
    assert apart.value == pytest.approx(0.011 + 0.022)


def test_coarser_granules_are_never_better():
    machine = engine(
        {"base_s": 0.01, "per_decode_context_s": 1e-6},
        {"base_s": 0.002, "per_prefill_token_s": 1e-4, "per_prefill_attention_s": 1e-7},
    )
    values = [
        solve(machine, [90, 140], tbt_s=0.012, decoding=[50] * 3, granule=g).value for g in (1, 5, 10, 20)
    ]
    assert values == sorted(values)


def test_a_limit_of_time_leaves_the_largest_chunks_and_a_bound():
    machine = engine(
        {"base_s": 0.01}, {"base_s": 0.002, "per_prefill_token_s": 1e-4, "per_prefill_attention_s": 1e-7}
    )
    done = solve(machine, [500, 900], tbt_s=0.02, decoding=[50] * 3, time_limit_s=1e-9)
    best = solve(machine, [500, 900], tbt_s=0.02, decoding=[50] * 3)
    assert (done.status, done.stopped_by) == (Status.FEASIBLE, "time")
    assert done.bound <= best.value <= done.value


@pytest.mark.parametrize(
    ("tbt_s", "limits", "why"),
    [
        (
            0.011,
            {},
            "3 requests that decode take 0.016 s a step without any prompt, and the TBT limit is 0.011 s",
        ),
        (0.0165, {}, "a chunk of prompt 0 up to token 16 beside 3 requests .* takes 0.0176 s"),
        (1.0, {"max_num_batched_tokens": 10, "max_num_seqs": 9}, "token budget is 10: no chunk fits"),
    ],
)
def test_what_cannot_be_says_why(tbt_s, limits, why):
    machine = engine({"base_s": 0.01, "per_prefill_token_s": 1e-4, "per_decode_seq_s": 0.002}, **limits)
    done = solve(machine, [64], tbt_s=tbt_s, decoding=[9] * 3)
    assert (done.status, done.value, done.solution) == (Status.INFEASIBLE, None, None)
    assert re.search(why, done.message), done.message


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"prompts": []}, "0 prompts"),
        ({"cached": [64]}, "64 cached"),
        ({"tbt_s": 0.0}, "tbt_s"),
        ({"granule": 0}, "granule"),
        ({"decoding": [0]}, "below 1"),
        ({"decoding": [5] * 256}, "leave some prompts for later"),
    ],
)
def test_bad_input(options, why):
    with pytest.raises(InputError, match=why):
        solve(engine({"base_s": 0.01}), **({"prompts": [64], "tbt_s": 0.1} | options))

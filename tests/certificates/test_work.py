"""Bounds from work: no schedule of any policy is below them, and known optima are met."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.bounds.lines import best_line, find_lines
from optimizer.certificates.step_lines import (
    FIELDS,
    Line,
    Work,
    corners,
    least_work,
    proves,
    regimes,
    survives_preemption,
)
from optimizer.certificates.work import work_bound
from optimizer.problem import Engine, Instance, Requests, StepTime
from optimizer.problem.engine import StepPiece, StepRegime
from optimizer.problem.knowledge import with_knowledge
from optimizer.simulator import simulate
from optimizer.units import seconds, ticks

# Those that keep the token budget: vLLM V0 and Orca compute a longer prompt at once.
POLICIES = ("vllm-v1", "svf", "lpt", "srpt", "sarathi-serve", "fastgen", "sorted-f")


@st.composite
def pieces(draw: st.DrawFn) -> StepPiece:
    rate = st.sampled_from([0.0, 1e-4, 1e-3])
    return StepPiece(
        base_s=draw(st.sampled_from([0.002, 0.01, 0.05])),
        per_prefill_token_s=draw(rate),
        per_prefill_attention_s=draw(st.sampled_from([0.0, 1e-5])),
        per_prefill_seq_s=draw(rate),
        per_prefill_context_s=draw(st.sampled_from([0.0, 1e-5])),
        per_decode_seq_s=draw(rate),
        per_decode_context_s=draw(st.sampled_from([0.0, 1e-5, 1e-4])),
    )


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    found = [StepRegime(pieces=tuple(draw(st.lists(pieces(), min_size=1, max_size=2))))]
    if draw(st.booleans()):
        phase = draw(st.sampled_from(["any", "decode", "prefill", "mixed"]))
        start = draw(st.sampled_from([0, 3, 7]) if phase != "any" else st.sampled_from([3, 7]))
        found.append(
            StepRegime(
                phase=phase, min_tokens=start, pieces=tuple(draw(st.lists(pieces(), min_size=1, max_size=2)))
            )
        )
    n = draw(st.integers(1, 7))
    seats = draw(st.integers(1, 5))
    lengths = st.lists(st.integers(1, 12), min_size=n, max_size=n)
    requests = Requests.from_columns(
        {
            "prompt_tokens": draw(lengths),
            "output_tokens": draw(lengths),
            "arrival_s": draw(
                st.sampled_from(
                    [[0.0] * n, sorted(draw(st.lists(st.floats(0, 0.3), min_size=n, max_size=n)))]
                )
            ),
            "weight": draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=n, max_size=n)),
        }
    )
    engine = Engine(
        name="e",
        kv_blocks=draw(st.integers(12, 30)),
        block_tokens=draw(st.sampled_from([2, 4])),
        max_num_seqs=seats,
        max_num_batched_tokens=draw(st.integers(max(seats, 2), 16)),
        step_time=StepTime(regimes=tuple(found)),
    )
    return Instance("drawn", with_knowledge(requests, "exact"), engine)


def value(instance: Instance, policy: str, objective: str) -> float:
    metrics = simulate(instance, policy).metrics
    if objective == "makespan":
        return metrics.makespan_s
    if objective == "ttft":
        return float(metrics.ttft_s.mean())
    weight = np.ones(len(metrics.e2e_s)) if objective == "mean-latency" else instance.requests.weight
    return float((weight * metrics.e2e_s).sum() / weight.sum())


@settings(deadline=None, max_examples=60)
@given(
    instances(),
    st.sampled_from(["makespan", "mean-latency", "weighted-latency", "ttft"]),
    st.sampled_from(POLICIES),
)
def test_no_policy_is_below_the_bound(instance: Instance, objective: str, policy: str) -> None:
    lines = find_lines(instance, objective)
    for line in lines:
        assert proves(line, instance.engine) is None
        assert survives_preemption(line, instance)
    bound = work_bound(instance, lines, objective)
    assert bound > 0
    # Arrivals are nanoseconds in a simulation.
    assert value(instance, policy, objective) >= float(bound) - 1e-9


@settings(deadline=None, max_examples=60)
@given(instances(), st.data())
def test_a_proved_line_is_below_every_step(instance: Instance, data: st.DataObject) -> None:
    from optimizer.capacity.step_time import StepClock

    engine = instance.engine
    line = best_line(instance, least_work(instance)[0])
    decodes = data.draw(st.integers(0, engine.max_num_seqs))
    room = min(engine.max_num_batched_tokens - decodes, engine.kv_tokens - 2 * decodes)
    most = room if decodes < engine.max_num_seqs else 0
    prefill = data.draw(st.integers(0 if decodes else 1, max(most, 0 if decodes else 1)))
    seqs = data.draw(st.integers(1, min(prefill, engine.max_num_seqs - decodes))) if prefill else 0
    context = data.draw(st.integers(decodes, max(decodes, engine.kv_tokens - prefill))) if decodes else 0
    attention = prefill + data.draw(st.integers(0, 50)) if prefill else 0
    step = dict(
        prefill_tokens=prefill, prefill_attention=attention, prefill_seqs=seqs, prefill_context=prefill,
        decode_seqs=decodes, decode_context=context,
    )  # fmt: skip
    assert line.of(Work(1, **step)) <= StepClock(engine.step_time).step(**step)


def two_seats(outputs: list[int], **engine: object) -> Instance:
    """Prompts of one block; a step takes a second."""
    requests = Requests.from_columns({"prompt_tokens": [16] * len(outputs), "output_tokens": outputs})
    values = {"kv_blocks": 100, "max_num_seqs": 2, "step_time": StepTime.affine(base_s=1.0)} | engine
    return Instance("toy", requests, Engine(name="toy", **values))


def test_seats_bound_the_makespan_and_the_longest_request_does() -> None:
    # 4 x 10 decodes on two seats, and nobody faster than 11 steps.
    assert work_bound(two_seats([11] * 4), find_lines(two_seats([11] * 4), "makespan"), "makespan") >= 20
    assert work_bound(two_seats([11, 2]), find_lines(two_seats([11, 2]), "makespan"), "makespan") == 11


def test_memory_bounds_total_latency_as_theory_says() -> None:
    """Equal rounds, M tokens: the k-th completion is at least the k smallest volumes over M."""
    prompt, output, room = np.array([4, 7, 5, 6]), np.array([8, 3, 6, 9]), 20
    engine = Engine(name="t", kv_blocks=room, block_tokens=1, step_time=StepTime.affine(base_s=1.0))
    requests = Requests.from_columns({"prompt_tokens": prompt, "output_tokens": output})
    instance = Instance("t", requests, engine)
    bound = work_bound(instance, find_lines(instance, "mean-latency"), "mean-latency")
    volume = np.sort(prompt * output + output * (output - 1) // 2)
    least = np.maximum(np.cumsum(volume) / room, np.sort(output))
    assert float(bound) >= least.mean() * (1 - 1e-6)


def test_a_line_that_is_too_high_is_refused() -> None:
    instance = two_seats([3, 3])
    line = find_lines(instance, "makespan")[0]
    assert proves(line, instance.engine) is None
    high = Line((line.rates[0] + ticks(1.0), *line.rates[1:]), line.weights)
    assert "takes less than the line says" in str(proves(high, instance.engine))
    assert proves(Line((-1, *line.rates[1:]), line.weights), instance.engine) == "a rate is negative"
    assert "weights" in str(proves(Line(line.rates, line.weights[1:]), instance.engine))
    costly = Line((0, 0, 10**15, 0, 0, 0, 0), line.weights)
    assert "without limit" in str(proves(costly, instance.engine))


def test_a_line_that_a_preemption_undercuts_is_refused() -> None:
    """Recomputing a short prompt for nothing would replace a decode that the line makes dear."""
    instance = two_seats([3, 3])
    weights = find_lines(instance, "makespan")[0].weights
    decodes_only = Line((0, 0, 0, 0, 0, ticks(0.5), 0), weights)
    assert proves(decodes_only, instance.engine) is None
    assert not survives_preemption(decodes_only, instance)


def test_the_work_of_a_request() -> None:
    engine = Engine(
        name="e", kv_blocks=99, max_num_batched_tokens=8, max_num_seqs=4, step_time=StepTime.affine(base_s=1)
    )
    requests = Requests.from_columns({"prompt_tokens": [10], "output_tokens": [3]})
    (work,) = least_work(Instance("one", requests, engine))
    # Two chunks and two decodes, with 11 and 12 tokens of context after them.
    assert work == Work(4, 10, 55, 1, 10, 2, 23)


def test_regimes_follow_the_step_time_model() -> None:
    model = StepTime(
        regimes=(
            StepRegime(pieces=(StepPiece(base_s=0.1),)),
            StepRegime(min_tokens=5, pieces=(StepPiece(base_s=0.3),)),
            StepRegime(phase="decode", pieces=(StepPiece(base_s=0.2),)),
        )
    )
    engine = Engine(name="e", kv_blocks=99, max_num_batched_tokens=8, max_num_seqs=4, step_time=model)
    found = {(r.phase, r.low, r.high): r.pieces[0][0] for r in regimes(engine)}
    assert found == {
        ("decode", 1, 4): ticks(0.2),
        ("prefill", 1, 4): ticks(0.1),
        ("prefill", 5, 8): ticks(0.3),
        ("mixed", 2, 4): ticks(0.1),
        ("mixed", 5, 8): ticks(0.3),
    }
    mixed = next(r for r in regimes(engine) if r.phase == "mixed" and r.low == 5)
    batches = {(c.prefill_tokens, c.decode_seqs) for c in corners(mixed, engine)}
    assert batches == {(4, 1), (2, 3), (7, 1), (5, 3)}
    assert len(FIELDS) == len(Work._fields)
    assert seconds(ticks(1.0)) == 1.0
    assert Fraction(1, 2) == 0.5

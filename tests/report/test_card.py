from __future__ import annotations

import numpy as np
import pytest

from optimizer.capacity import engine, engine_card, gpu
from optimizer.problem import Instance, Requests, StepTime
from optimizer.report.card import card_of, describe_engine, trust, warning
from optimizer.simulator import simulate


def test_a_card_belongs_to_an_engine_with_its_step_times():
    own = engine("llama3.1-8b@h200", kv_blocks=50)
    assert card_of(own) == engine_card("llama3.1-8b@h200")
    assert card_of(own.replace(step_time=StepTime.affine(base_s=1.0))) is None
    assert card_of(own.replace(name="other")) is None


def test_without_a_card_nothing_is_claimed(under_pressure):
    said = describe_engine(under_pressure.instance.engine, under_pressure.schedule)
    assert (said["fit_error"], said["beyond"]) == (None, None)
    assert trust(said) == "step times as given, without a card"
    assert warning(said) is None


def test_an_estimate_is_described_with_what_is_known_of_its_gpu(under_pressure):
    schedule = under_pressure.schedule
    said = describe_engine(engine("qwen3-8b@h100"), schedule)
    assert said["estimate_error"] == gpu("h100").estimate_error.model_dump()
    assert f"of {said['estimate_error']['points']} figures" in trust(said)
    for name in ("qwen3-8b@b200", "qwen3-8b@a100-40"):
        said = describe_engine(engine(name), schedule)
        assert said["estimate_error"] is None
        assert trust(said).endswith("never checked on this GPU")
    assert describe_engine(engine("llama3.1-8b@h200"), schedule)["estimate_error"] is None


def test_sums_beyond_the_range_are_those_of_the_steps():
    """Each sum, counted step by step, against what is said of runs."""
    card = engine_card("llama3.1-8b@h200").model_copy(update={"covers": dict.fromkeys(
        ("prefill_tokens", "prefill_attention", "prefill_seqs", "prefill_context", "decode_seqs", "decode_context"), (0, 1)
    )})  # fmt: skip
    own = engine("llama3.1-8b@h200", max_num_batched_tokens=64, max_num_seqs=8)
    lengths = {"prompt_tokens": [200, 30, 100], "output_tokens": [20, 30, 7]}
    s = simulate(Instance("three", Requests.from_columns(lengths), own))
    most = dict.fromkeys(card.covers, 0.0)
    context = np.zeros(3)
    for step in s.schedule.iterate():
        attention = sum(n * context[r] + n * (n + 1) / 2 for r, n in step.prefill)
        for request, tokens in step.prefill:
            context[request] += tokens
        context[list(step.decode)] += 1
        sums = (sum(n for _, n in step.prefill), attention, len(step.prefill), context[[r for r, _ in step.prefill]].sum(),
                len(step.decode), context[list(step.decode)].sum())  # fmt: skip
        most = {name: max(most[name], value) for name, value in zip(most, sums, strict=True)}
    said = describe_engine(own, s.schedule, card)
    assert {name: of["most"] for name, of in said["beyond"]["sums"].items()} == pytest.approx(most)
    assert said["beyond"]["share"] == pytest.approx(1.0)


def test_a_hair_beyond_is_not_beyond(under_pressure):
    card = engine_card("llama3.1-8b@h200")
    most = float(under_pressure.schedule.decode_seqs.max())
    for covered, beyond in ((most / 1.01, False), (most / 1.5, True)):
        changed = card.model_copy(update={"covers": {"decode_seqs": (0.0, covered)}})
        said = describe_engine(under_pressure.instance.engine, under_pressure.schedule, changed)
        assert bool(warning(said)) is beyond

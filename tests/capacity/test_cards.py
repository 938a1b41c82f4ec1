"""Engine cards: every one loads, published values come out, and names are found or corrected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimizer.capacity import (
    StepClock,
    engine,
    engine_card,
    estimated_card,
    gpu,
    kv_blocks,
    list_engines,
    llm,
)
from optimizer.catalogue import catalogue_path
from optimizer.errors import InputError
from optimizer.problem.engine import Engine


@pytest.mark.parametrize("name", list_engines())
def test_every_card_loads_and_is_traceable(name: str) -> None:
    card = engine_card(name)
    assert card.name == name
    assert card.source
    assert card.notes
    found = engine(name)
    assert isinstance(found, Engine)
    assert found.origin == card.origin
    assert llm(card.llm).name == card.llm
    assert gpu(card.gpu).name == card.gpu
    clock = StepClock(found.step_time)
    assert 0.001 < clock.step(decode_seqs=1, decode_context=100) / 1e15 < 0.1


def milliseconds(name: str, **work: int) -> float:
    return StepClock(engine(name).step_time).step(**work) / 1e12


@pytest.mark.parametrize(("tokens", "expected"), [(512, 72.149), (2048, 256.692)])
def test_distserve_prefill(tokens: int, expected: float) -> None:
    work = {"prefill_tokens": tokens, "prefill_attention": tokens * (tokens + 1) // 2, "prefill_seqs": 1}
    assert milliseconds("opt-13b-tp1@a100-80-distserve", **work) == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(("seqs", "expected"), [(16, 25.687), (128, 65.428)])
def test_distserve_decode(seqs: int, expected: float) -> None:
    work = {"decode_seqs": seqs, "decode_context": seqs * 512}
    assert milliseconds("opt-13b-tp1@a100-80-distserve", **work) == pytest.approx(expected, abs=0.001)


def test_distserve_prefills_of_a_batch_add_their_squares() -> None:
    attention = sum(p * (p + 1) // 2 for p in (100, 700))
    work = {"prefill_tokens": 800, "prefill_attention": attention, "prefill_seqs": 2}
    expected = 22.0522 + 0.140509 * 800 + 8.0766e-6 * (100**2 + 700**2)
    assert milliseconds("opt-13b-tp1@a100-80-vllm", **work) == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("opt-13b-tp1@a100-80-distserve", 66_144),
        ("opt-13b-tp2@a100-80-distserve", 163_008),
        ("opt-13b-tp4@a100-80-distserve", 356_736),
        ("opt-66b-tp2@a100-80-distserve", 11_600),
        ("opt-66b-tp4@a100-80-vllm", 78_496),
        ("opt-66b-tp8@a100-80-vllm", 212_304),
        ("llama3.1-8b@h200", (57_489 - 1) * 16),
        ("llama2-13b@h200", (8_449 - 1) * 16),
        ("llama-65b-fp8@h200", (1_680 - 1) * 16),
    ],
)
def test_kv_capacity(name: str, tokens: int) -> None:
    assert engine(name).kv_tokens == tokens


def test_measured_engines_take_what_was_measured() -> None:
    # A step of one sequence of the asynchronous engine: 4.85 ms and 20.0 ms.
    assert milliseconds("llama3.1-8b@h200", decode_seqs=1, decode_context=1500) == pytest.approx(
        4.85, rel=0.02
    )
    assert milliseconds("llama-65b-fp8@h200", decode_seqs=1, decode_context=1200) == pytest.approx(
        20.0, rel=0.02
    )
    # Two hundred at the start of the runs.
    assert milliseconds("llama3.1-8b@h200", decode_seqs=200, decode_context=16_000) == pytest.approx(
        8.2, rel=0.08
    )
    assert milliseconds("llama-65b-fp8@h200", decode_seqs=200, decode_context=18_300) == pytest.approx(
        62.6, rel=0.03
    )


@pytest.mark.parametrize(
    "spelling",
    [
        ("llama3.1-8b@h200", {}),
        ("LLAMA3.1-8B@H200", {}),
        ("llama3.1-8b-bf16-tp1@h200", {}),
        ("llama3.1-8b@h200", {"tp": 1}),
    ],
)
def test_spellings_of_a_card(spelling: tuple[str, dict[str, Any]]) -> None:
    name, arguments = spelling
    assert engine(name, **arguments) == engine_card("llama3.1-8b@h200").engine()


def test_spellings_of_an_estimate() -> None:
    found = engine("llama3.1-70b-fp8-tp2@h100")
    assert found.name == "llama3.1-70b-fp8-tp2@h100"
    assert found == engine("llama3.1-70b-tp2-fp8@h100") == engine("llama3.1-70b@h100", tp=2, dtype="fp8")
    assert engine("llama-65b@h200", dtype="fp8").origin == "measured"
    assert engine("llama3.1-8b@h200", tp=2).origin == "estimated"
    assert engine("opt-13b@a100-80-distserve") == engine("opt-13b-tp1@a100-80-distserve")
    card = catalogue_path("models") / "engines" / "llama3.1-8b@h200.yaml"
    assert engine(str(card)) == engine("llama3.1-8b@h200")


@pytest.mark.parametrize("name", ["qwen3-8b@h100", "yi-34b-tp4@a100-40", "mixtral-8x22b-fp8-tp4@h200"])
def test_an_estimated_card_is_the_estimate(name: str) -> None:
    card = estimated_card(name)
    assert card.engine() == engine(name)
    assert card.estimate_error == gpu(card.gpu).estimate_error
    assert ("never checked" in card.notes) is (card.estimate_error is None)
    assert f"{card.llm}{'-fp8' if card.dtype == 'fp8' else ''}-tp{card.tp}@{card.gpu}" in (
        name,
        name.replace("@", "-tp1@"),
    )


def test_a_shipped_estimate_is_sized_for_the_limits_asked_for() -> None:
    """As the same engine without a card is."""
    name, limits = "llama3.1-70b-tp4@h100", {"max_num_seqs": 32, "max_num_batched_tokens": 2048}
    found = engine(name, **limits)
    assert name in list_engines()
    assert found.kv_blocks > engine(name).kv_blocks
    shape, device = llm("llama3.1-70b"), gpu("h100")
    assert found.kv_blocks == kv_blocks(shape, device, tp=4, **limits)  # type: ignore[arg-type]
    assert engine(name, kv_blocks=500, **limits).kv_blocks == 500
    # A measured number of blocks stays.
    assert engine("llama3.1-8b@h200", **limits).kv_blocks == engine("llama3.1-8b@h200").kv_blocks


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "lama3.1-8b@h200",
            {},
            r"no LLM 'lama3\.1-8b' \(did you mean llama3\.1-8b.*near name: .*llama3\.1-8b@h200",
        ),
        ("llama3.1-8b@h201", {}, r"no GPU 'h201' \(did you mean .*h200"),
        ("llama3.1-8b", {}, "expected <llm>@<gpu>"),
        ("llama3.1-8b-tp0@h200", {}, "0 GPUs cannot share"),
        ("qwen3-8b@l40s", {"block_tokens": "x"}, "field block_tokens"),
        ("llama3.1-8b-tp2@h200", {"tp": 4}, "the name says 2 and the argument 4"),
        ("llama3.1-70b@h100", {}, "no KV cache on 1 x h100"),
        ("llama3.1-8b@h200", {"kv_blocks": 0}, "field kv_blocks"),
        ("llama3.1-8b@h200", {"kv_block": 10}, "field kv_block: no such field; did you mean kv_blocks"),
        (
            "llama3.1-8b@h200",
            {"max_num_batched_tokens": 128},
            "max_num_seqs 256 is above max_num_batched_tokens",
        ),
        ("absent.yaml", {}, r"absent\.yaml: cannot be read"),
    ],
)
def test_what_is_wrong_is_said(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine(name, **arguments)


def test_overrides() -> None:
    found = engine("llama3.1-8b@h200", max_num_batched_tokens=512, kv_blocks=100, prefix_caching=True)
    assert (found.max_num_batched_tokens, found.kv_blocks, found.prefix_caching) == (512, 100, True)
    assert engine("qwen3-8b@l40s", block_tokens=32).kv_tokens == pytest.approx(
        engine("qwen3-8b@l40s").kv_tokens, abs=32
    )


def test_a_card_of_one_s_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = (catalogue_path("models") / "engines" / "llama2-13b@h200.yaml").read_text()
    path.write_text(text.replace("kv_blocks: 8448", "kv_blocks: 77"))
    assert engine(str(path)).kv_blocks == 77
    assert engine(str(path), max_num_seqs=3).max_num_seqs == 3
    path.write_text(text.replace("kv_blocks: 8448", "kv_blocks: many"))
    with pytest.raises(InputError, match=r"mine\.yaml, field kv_blocks: .*given: 'many'"):
        engine(str(path))

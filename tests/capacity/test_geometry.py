"""KV bytes and blocks: published figures, and three engines that were measured."""

from __future__ import annotations

import pytest

from optimizer.capacity import gpu, kv_blocks, kv_bytes_per_token, llm
from optimizer.errors import InputError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama2-7b", 524_288),
        ("llama2-13b", 819_200),
        ("llama2-70b", 327_680),
        ("llama3-8b", 131_072),
        ("opt-13b", 819_200),
        ("opt-66b", 2_359_296),
        ("llama-65b", 2_621_440),
    ],
)
def test_kv_bytes_per_token(name: str, expected: int) -> None:
    assert kv_bytes_per_token(llm(name), "fp16") == expected
    assert kv_bytes_per_token(llm(name), "fp8") == expected // 2


def test_kv_heads_are_dealt_and_then_copied() -> None:
    model = llm("llama2-70b")
    assert kv_bytes_per_token(model, tp=4) == 327_680 // 4
    assert kv_bytes_per_token(model, tp=16) == kv_bytes_per_token(model, tp=8)


@pytest.mark.parametrize(
    ("name", "dtype", "reported"),
    [("llama3.1-8b", None, 57_489), ("llama2-13b", None, 8_449), ("llama-65b", "fp8", 1_680)],
)
def test_blocks_against_vllm_on_an_h200(name: str, dtype: str | None, reported: int) -> None:
    estimate = kv_blocks(llm(name), gpu("h200"), dtype=dtype, max_num_seqs=512)  # type: ignore[arg-type]
    assert estimate == pytest.approx(reported, rel=0.002)


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(InputError, match=r"141.1 GB of weights.*2 of them would do \(tp=2\).*fp8"):
        kv_blocks(llm("llama3.1-70b"), gpu("h100"))
    with pytest.raises(InputError, match="more of them would not do either"):
        kv_blocks(llm("llama3.1-405b"), gpu("t4"), utilisation=0.1)


def test_heads_that_cannot_be_dealt() -> None:
    with pytest.raises(InputError, match="sizes that can: 1, 2, 4, 8, 16, 32"):
        kv_blocks(llm("llama3.1-8b"), gpu("h100"), tp=3)


@pytest.mark.parametrize("wrong", [{"utilisation": 0.0}, {"utilisation": 1.5}, {"block_tokens": 0}])
def test_numbers_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        kv_blocks(llm("llama3.1-8b"), gpu("h100"), **wrong)  # type: ignore[arg-type]

"""The roofline: where it can be computed by hand, where it was measured, and what must hold everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.capacity import (
    Efficiency,
    StepClock,
    engine,
    estimate,
    gpu,
    list_gpus,
    list_llms,
    llm,
    roofline,
)
from optimizer.capacity.specifications import Dtype
from optimizer.errors import InputError

IDEAL = Efficiency(
    matrix=1, fp8_matrix=1, fp8_few_matrix=1, attention=1, weight_read=1, kv_read=1, interconnect=1,
    layer_s=0, allreduce_s=0, step_s=0, seq_s=0, host_s=1e-9, host_seq_s=0,
)  # fmt: skip


def test_ideal_decode_reads_weights_and_cache() -> None:
    model, device = llm("llama3.1-8b"), gpu("h200")
    clock = StepClock(roofline(model, device, efficiency=IDEAL))
    read = model.weight_bytes() - 2 * model.embedding_parameters  # of the token table one row is read
    taken = clock.step(decode_seqs=1, decode_context=1000) / 1e15
    expected = (read + 1000 * 131_072) / 4.8e12
    assert taken == pytest.approx(expected, rel=0.01)


def test_ideal_prefill_is_bound_by_the_products() -> None:
    clock = StepClock(roofline(llm("llama3.1-8b"), gpu("h200"), efficiency=IDEAL))
    taken = clock.step(prefill_tokens=8192, prefill_attention=8192 * 8193 // 2, prefill_seqs=1) / 1e15
    work = 2 * 8192 * (8.03e9 - 2 * 0.525e9) + 4 * 32 * 4096 * 8192 * 8193 / 2
    # The last tangent touches at three times the ridge: 5 % below the true root far out.
    assert work * 0.94 / 989.4e12 < taken < work * 1.02 / 989.4e12


@pytest.mark.parametrize(
    ("name", "dtype", "error"),
    [("llama3.1-8b", "bf16", 0.25), ("llama2-13b", "bf16", 0.25), ("llama-65b", "fp8", 0.4)],
)
def test_near_the_measured_engines(name: str, dtype: str, error: float) -> None:
    estimated = StepClock(roofline(llm(name), gpu("h200"), dtype=dtype))  # type: ignore[arg-type]
    measured = StepClock(engine(f"{name}{'-fp8' if dtype == 'fp8' else ''}@h200").step_time)
    for work in (
        {"decode_seqs": 1, "decode_context": 500},
        {"decode_seqs": 64, "decode_context": 20_000},
        {"decode_seqs": 200, "decode_context": 20_000},
        {"prefill_tokens": 2048, "prefill_attention": 2_098_176, "prefill_seqs": 1},
    ):
        assert estimated.step(**work) == pytest.approx(measured.step(**work), rel=error)


@given(
    st.sampled_from(list_llms()),
    st.sampled_from(list_gpus()),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["bf16", "fp8"]),
    st.data(),
)
def test_more_work_never_takes_less_time(
    name: str, device: str, tp: int, dtype: Dtype, data: st.DataObject
) -> None:
    model = llm(name)
    if model.heads % tp or model.kv_heads % tp:
        return
    clock = StepClock(roofline(model, gpu(device), tp, dtype))
    few = data.draw(st.integers(1, 600))
    more = few + data.draw(st.integers(0, 600))
    assert clock.step(decode_seqs=few, decode_context=few) <= clock.step(
        decode_seqs=more, decode_context=more
    )
    # A regime of a mixture of experts begins where the one before it ends, up to the rounding to ticks.
    assert clock.step(prefill_tokens=few) <= clock.step(prefill_tokens=more) + 10**6


def test_more_gpus_are_faster_and_hold_more() -> None:
    one, four = engine("llama3.1-8b@a100-80"), engine("llama3.1-8b-tp4@a100-80")
    work = {"prefill_tokens": 4096, "prefill_attention": 8_390_656, "prefill_seqs": 1}
    assert StepClock(four.step_time).step(**work) < StepClock(one.step_time).step(**work) / 2
    assert four.kv_blocks > 4 * one.kv_blocks


def test_few_tokens_touch_few_experts() -> None:
    clock = StepClock(roofline(llm("mixtral-8x7b"), gpu("h200"), efficiency=IDEAL))
    one, many = (clock.step(decode_seqs=n, decode_context=0) / 1e15 for n in (1, 64))
    assert one == pytest.approx(2 * 12.8e9 / 4.8e12, rel=0.03)
    assert many > 2 * 46.6e9 / 4.8e12


@given(st.sampled_from(list_llms()), st.sampled_from(["h100", "h200", "l40s"]), st.integers(1, 3000))
def test_fp8_reaches_less_of_the_peak_in_small_steps(name: str, device: str, tokens: int) -> None:
    """Between a model with the share of small steps everywhere and one with that of large steps."""
    model, own = llm(name), gpu(device).efficiency or Efficiency()
    few, many = (
        own.model_copy(update=dict.fromkeys(("fp8_matrix", "fp8_few_matrix"), share))
        for share in (own.fp8_few_matrix, own.fp8_matrix)
    )
    slow, both, fast = (
        StepClock(roofline(model, gpu(device), dtype="fp8", efficiency=rates)).step(prefill_tokens=tokens)
        for rates in (few, own, many)
    )
    assert slow >= both >= fast
    assert both == slow or tokens >= 512


def test_without_fp8_hardware_products_run_in_16_bits() -> None:
    work = {"prefill_tokens": 4096, "prefill_attention": 8_390_656, "prefill_seqs": 1}
    in_fp8, in_16 = (
        StepClock(roofline(llm("llama3.1-8b"), gpu("a100-80"), dtype=dtype)).step(**work)
        for dtype in ("fp8", "bf16")
    )
    assert in_fp8 == pytest.approx(in_16, rel=0.01)


def test_a_gpu_has_factors_of_its_own() -> None:
    own = gpu("h100").efficiency
    assert own is not None
    assert roofline(llm("llama3.1-8b"), gpu("h100")) == roofline(
        llm("llama3.1-8b"), gpu("h100"), efficiency=own
    )
    without = gpu("h100").model_copy(update={"efficiency": None})
    assert roofline(llm("llama3.1-8b"), without) == roofline(
        llm("llama3.1-8b"), without, efficiency=Efficiency()
    )


def test_the_defaults_are_those_of_the_h200() -> None:
    own = gpu("h200").efficiency
    assert own is not None
    for name, value in Efficiency():
        assert getattr(own, name) == pytest.approx(value, rel=0.05), name


def test_tensor_parallel_sizes_are_checked() -> None:
    with pytest.raises(InputError, match="sizes that can"):
        roofline(llm("llama3.1-8b"), gpu("h200"), tp=5)


def test_estimate_takes_limits() -> None:
    found = estimate(llm("qwen2.5-7b"), gpu("l40s"), max_num_seqs=64, max_num_batched_tokens=2048)
    assert (found.max_num_seqs, found.max_num_batched_tokens, found.origin) == (64, 2048, "estimated")

"""Step times from specifications alone: what an LLM has to read and compute, and how fast a GPU does."""

from __future__ import annotations

from typing import Any

from optimizer.capacity.geometry import kv_blocks, kv_bytes_per_token
from optimizer.capacity.specifications import BYTES, GPU, LLM, Dtype, Efficiency, check_tensor_parallel
from optimizer.capacity.yaml_files import validated
from optimizer.problem.engine import Engine, StepPiece, StepRegime, StepTime


def roofline(
    llm: LLM,
    gpu: GPU,
    tp: int = 1,
    dtype: Dtype | None = None,
    *,
    kv_dtype: Dtype = "bf16",
    efficiency: Efficiency | None = None,
) -> StepTime:
    """Estimate the step times of an LLM on one GPU or one tensor-parallel group.

    Parameters
    ----------
    llm, gpu, tp
        What runs where.
    dtype
        Of the weights; the model's own if None.
    kv_dtype
        Of the KV cache.
    efficiency
        What is reached of the data sheet, in place of the GPU's own factors.

    Returns
    -------
    StepTime
        One regime for a dense model in 16 bits. For fp8 weights a second one from 512 tokens on. For a mixture of
        experts one per doubling of the tokens, since more tokens touch more experts' weights until all are read.

    Raises
    ------
    InputError
        If the heads cannot be dealt to `tp` GPUs.

    Notes
    -----
    A step takes max(GPU, host) with GPU = fixed + (floor^2 + work^2)^(1/2) + attention + KV reads + all-reduces, where
    floor is reading the weights and work the matrix products of all tokens. The root of squares stands for
    the two being overlapped badly where they are equal; it is convex in the tokens, and its tangents are the pieces.

    Products in fp8 reach less of the peak in small steps (`fp8_few_matrix`): LLaMA-65B on an H200 takes as long for
    129 tokens as for 256. The regime of large steps begins with the time at which the small ones end.

    Examples
    --------
    >>> from optimizer.capacity import gpu, llm
    >>> pieces = roofline(llm("llama3.1-8b"), gpu("h200")).regimes[0].pieces
    >>> round(1000 * pieces[0].base_s, 1)  # ms for a step of one token
    4.8
    """
    check_tensor_parallel(llm, tp)
    kind = dtype or llm.dtype
    rates = efficiency or gpu.efficiency or Efficiency()
    starts = (0, *(_DOUBLINGS if llm.experts > 1 else ()), *((_FEW,) if _in_fp8(gpu, kind) else ()))
    regimes = []
    for start, end in zip(starts, (*starts[1:], None), strict=True):
        pieces = tuple(_pieces(llm, gpu, tp, kind, kv_dtype, rates, start, end))
        regimes.append(StepRegime(min_tokens=start, pieces=pieces))
    return StepTime(regimes=tuple(regimes))


_DOUBLINGS = (2, 4, 8, 16, 32, 64, 128, 256)
_FEW = 512
# Where the tangents touch, in multiples of the ridge (the tokens at which floor and work are equal).
_TOUCH = (0.0, 0.35, 0.8, 1.5, 3.0)


def _pieces(
    llm: LLM, gpu: GPU, tp: int, dtype: Dtype, kv_dtype: Dtype, rates: Efficiency, start: int, end: int | None
) -> list[StepPiece]:
    bandwidth = gpu.bandwidth_bytes_s
    floor, read_token = _weights_read(llm, dtype, start, end)
    floor, read_token = (x / tp / (bandwidth * rates.weight_read) for x in (floor, read_token))
    head = 2 * llm.embedding_parameters / tp / (gpu.bf16_flops * rates.matrix)
    reduce_fixed, reduce_token = _all_reduce(llm, gpu, tp, rates)
    fixed = rates.step_s + llm.layers * rates.layer_s + reduce_fixed
    pair = 4 * llm.layers * llm.heads * llm.head_dim / tp / (gpu.bf16_flops * rates.attention)
    context = kv_bytes_per_token(llm, kv_dtype, tp) / (bandwidth * rates.kv_read)
    products = 2 * _layer_parameters(llm, llm.experts_per_token) / tp / gpu.flops(dtype)
    if not _in_fp8(gpu, dtype):
        lines = _tangents(floor, read_token, products / rates.matrix)
    elif start < _FEW:
        lines = _tangents(floor, read_token, products / rates.fp8_few_matrix)
    else:
        few = _tangents(floor, read_token, products / rates.fp8_few_matrix)
        reached = max(base + token * _FEW for base, token in few)
        lines = [(reached, 0.0), *_tangents(floor, read_token, products / rates.fp8_matrix)]
    found = [
        StepPiece(
            base_s=fixed + base,
            per_prefill_token_s=token + reduce_token,
            per_prefill_attention_s=pair,
            per_prefill_seq_s=rates.seq_s + head,
            per_prefill_context_s=context,
            per_decode_seq_s=token + reduce_token + rates.seq_s + head,
            per_decode_context_s=context,
        )
        for base, token in lines
    ]
    host = StepPiece(
        base_s=rates.host_s, per_prefill_seq_s=rates.host_seq_s, per_decode_seq_s=rates.host_seq_s
    )
    return [*found, host]


def _in_fp8(gpu: GPU, dtype: Dtype) -> bool:
    """Say whether products run in fp8: without the hardware, fp8 weights are widened to 16 bits first."""
    return dtype == "fp8" and gpu.fp8_flops is not None


def _tangents(floor: float, read_token: float, work: float) -> list[tuple[float, float]]:
    """Give (constant, per token) of lines whose maximum is sqrt(floor^2 + (work * tokens)^2), nearly."""
    lines = []
    for touch in _TOUCH:
        # The line that touches where work = touch * floor; both weights are at most 1.
        of_floor, of_work = 1 / (1 + touch**2) ** 0.5, touch / (1 + touch**2) ** 0.5
        lines.append((of_floor * floor, of_floor * read_token + of_work * work))
    return lines


def _layer_parameters(llm: LLM, experts: int) -> int:
    return llm.layers * (llm.attention_parameters + experts * llm.expert_parameters + llm.router_parameters)


def _weights_read(llm: LLM, dtype: Dtype, start: int, end: int | None) -> tuple[float, float]:
    """Bytes of weights that a step reads: a floor, and what each token adds within [start, end)."""
    expert = llm.layers * llm.expert_parameters * BYTES[dtype]
    rest = _layer_parameters(llm, 0) * BYTES[dtype] + llm.embedding_parameters * 2

    def touched(tokens: int) -> float:
        # Experts met by independent, equally likely choices.
        return llm.experts * (1 - (1 - llm.experts_per_token / llm.experts) ** tokens)

    low = max(1, start)
    if end is None:
        return rest + expert * (
            touched(low) if llm.experts_per_token < llm.experts and start else llm.experts
        ), 0.0
    slope = (touched(end) - touched(low)) / (end - low) if end > low else 0.0
    return rest + expert * (touched(low) - slope * low), expert * slope


def _all_reduce(llm: LLM, gpu: GPU, tp: int, rates: Efficiency) -> tuple[float, float]:
    """Two ring all-reduces of the hidden state per layer: seconds per step, and per token."""
    if tp == 1:
        return 0.0, 0.0
    crossing = 2 * (tp - 1) / tp * llm.hidden * 2
    per_token = 2 * llm.layers * crossing / (gpu.interconnect_bytes_s * rates.interconnect)
    return 2 * llm.layers * rates.allreduce_s, per_token


def estimate(
    llm: LLM,
    gpu: GPU,
    *,
    tp: int = 1,
    dtype: Dtype | None = None,
    name: str | None = None,
    efficiency: Efficiency | None = None,
    **limits: Any,
) -> Engine:
    """Build an engine from specifications: `roofline` for the time, `kv_blocks` for the memory.

    Parameters
    ----------
    llm, gpu, tp, dtype, efficiency
        As in `roofline`.
    name
        Of the engine; `<llm>@<gpu>` if None.
    **limits
        `max_num_batched_tokens`, `max_num_seqs`, `block_tokens` of the engine; they size the activations too.

    Raises
    ------
    InputError
        If the model does not fit, or a limit is out of range.

    Examples
    --------
    >>> from optimizer.capacity import gpu, llm
    >>> estimate(llm("qwen2.5-32b"), gpu("h100")).origin
    'estimated'
    """
    blocks = kv_blocks(llm, gpu, tp=tp, dtype=dtype, **limits)
    values = {
        "name": name or f"{llm.name}@{gpu.name}",
        "kv_blocks": blocks,
        "max_model_len": llm.max_model_len,
        "step_time": roofline(llm, gpu, tp, dtype, efficiency=efficiency),
        # With factors of the caller's own, nothing is known of how wrong the estimate is.
        "origin": "estimated" if efficiency is None else "given",
        "source": f"roofline of {llm.name} ({dtype or llm.dtype}) on {tp} x {gpu.name}; KV blocks from its memory",
        **limits,
    }
    return validated(Engine, values)

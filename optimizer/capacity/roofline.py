"""Step times from specifications alone: what an LLM has to read and compute, and how fast a GPU does."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from optimizer.capacity.geometry import kv_blocks, kv_bytes_per_token
from optimizer.capacity.specifications import BYTES, GPU, LLM, Dtype, check_tensor_parallel
from optimizer.capacity.yaml_files import validated
from optimizer.problem.engine import Engine, Frozen, StepPiece, StepRegime, StepTime


class Efficiency(Frozen):
    """What a serving engine reaches of the data sheet.

    The defaults are read off the three engines measured on an H200 with vLLM 0.26: matrix products ran at 65 %
    of the peak, causal attention at 60 %, the KV cache was read at 92 to 100 % of the memory bandwidth,
    and reading the weights at 75 % with 20 us for each layer's kernels explains all three floors.

    Attributes
    ----------
    matrix, fp8_matrix, attention
        Shares of the peak rate, in (0, 1].
    weight_read, kv_read, interconnect
        Shares of the bandwidth, in (0, 1].
    layer_s
        Launches and small kernels of one layer.
    allreduce_s
        Latency of one all-reduce; each layer has two.
    step_s
        The fixed part of a step that nothing hides.
    seq_s
        Sampling and bookkeeping of one request in a step.
    host_s, host_seq_s
        The host's own time of a step and of each request in it; an asynchronous engine hides it behind the GPU.
    """

    matrix: float = Field(0.65, gt=0, le=1)
    fp8_matrix: float = Field(0.55, gt=0, le=1)
    attention: float = Field(0.55, gt=0, le=1)
    weight_read: float = Field(0.75, gt=0, le=1)
    kv_read: float = Field(0.90, gt=0, le=1)
    interconnect: float = Field(0.70, gt=0, le=1)
    layer_s: float = Field(2e-5, ge=0)
    allreduce_s: float = Field(1.5e-5, ge=0)
    step_s: float = Field(2e-4, ge=0)
    seq_s: float = Field(5e-6, ge=0)
    host_s: float = Field(2e-3, ge=0)
    host_seq_s: float = Field(2e-5, ge=0)


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
        What is reached of the data sheet.

    Returns
    -------
    StepTime
        One regime for a dense model; for a mixture of experts one per doubling of the tokens, since
        more tokens touch more experts' weights until all are read.

    Raises
    ------
    InputError
        If the heads cannot be dealt to `tp` GPUs.

    Notes
    -----
    A step takes max(GPU, host) with GPU = fixed + (floor^2 + work^2)^(1/2) + attention + KV reads + all-reduces, where
    floor is reading the weights and work the matrix products of all tokens. The root of squares stands for
    the two being overlapped badly where they are equal; it is convex in the tokens, and its tangents are the pieces.

    Examples
    --------
    >>> from optimizer.capacity import gpu, llm
    >>> pieces = roofline(llm("llama3.1-8b"), gpu("h200")).regimes[0].pieces
    >>> round(1000 * pieces[0].base_s, 1)  # ms for a step of one token
    5.0
    """
    check_tensor_parallel(llm, tp)
    kind = dtype or llm.dtype
    rates = efficiency or Efficiency()
    starts = (0, *_DOUBLINGS) if llm.experts > 1 else (0,)
    regimes = []
    for start, end in zip(starts, (*starts[1:], None), strict=True):
        pieces = tuple(_pieces(llm, gpu, tp, kind, kv_dtype, rates, start, end))
        regimes.append(StepRegime(min_tokens=start, pieces=pieces))
    return StepTime(regimes=tuple(regimes))


_DOUBLINGS = (2, 4, 8, 16, 32, 64, 128, 256)
# Where the tangents touch, in multiples of the ridge (the tokens at which floor and work are equal).
_TOUCH = (0.0, 0.35, 0.8, 1.5, 3.0)


def _pieces(
    llm: LLM, gpu: GPU, tp: int, dtype: Dtype, kv_dtype: Dtype, rates: Efficiency, start: int, end: int | None
) -> list[StepPiece]:
    bandwidth = gpu.bandwidth_bytes_s
    peak = gpu.flops(dtype) * (rates.fp8_matrix if dtype == "fp8" else rates.matrix)
    floor, read_token = _weights_read(llm, dtype, start, end)
    floor, read_token = (x / tp / (bandwidth * rates.weight_read) for x in (floor, read_token))
    work = 2 * _layer_parameters(llm, llm.experts_per_token) / tp / peak
    head = 2 * llm.embedding_parameters / tp / (gpu.bf16_flops * rates.matrix)
    reduce_fixed, reduce_token = _all_reduce(llm, gpu, tp, rates)
    fixed = rates.step_s + llm.layers * rates.layer_s + reduce_fixed
    pair = 4 * llm.layers * llm.heads * llm.head_dim / tp / (gpu.bf16_flops * rates.attention)
    context = kv_bytes_per_token(llm, kv_dtype, tp) / (bandwidth * rates.kv_read)
    found = []
    for touch in _TOUCH:
        # Tangent of sqrt(floor^2 + work^2) where work = touch * floor; both weights are at most 1.
        of_floor, of_work = 1 / (1 + touch**2) ** 0.5, touch / (1 + touch**2) ** 0.5
        token = of_floor * read_token + of_work * work + reduce_token
        found.append(
            StepPiece(
                base_s=fixed + of_floor * floor,
                per_prefill_token_s=token,
                per_prefill_attention_s=pair,
                per_prefill_seq_s=rates.seq_s + head,
                per_prefill_context_s=context,
                per_decode_seq_s=token + rates.seq_s + head,
                per_decode_context_s=context,
            )
        )
    host = StepPiece(
        base_s=rates.host_s, per_prefill_seq_s=rates.host_seq_s, per_decode_seq_s=rates.host_seq_s
    )
    return [*found, host]


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
        "origin": "estimated",
        "source": f"roofline of {llm.name} ({dtype or llm.dtype}) on {tp} x {gpu.name}; KV blocks from its memory",
        **limits,
    }
    return validated(Engine, values)

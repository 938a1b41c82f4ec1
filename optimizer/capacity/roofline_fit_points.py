"""Published figures of engines, and what an estimate says of each: `models/measurements/public/*.csv`.

A figure is turned into seconds (of a step, a token, a request), and so is the estimate of it, by the steady state of
its benchmark: no simulation. What a benchmark's own scripts set and the tables do not say stands here as a constant.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import numpy as np

from optimizer.capacity.catalogue import gpu, llm
from optimizer.capacity.geometry import kv_blocks
from optimizer.capacity.roofline import roofline
from optimizer.capacity.specifications import GPU, Dtype, Efficiency
from optimizer.capacity.step_time import StepClock
from optimizer.catalogue import catalogue_path
from optimizer.units import seconds

Role = Literal["fit", "check", "older", "other engine", "unknown board"]
"""What a figure is for: fitted to, or checked against; checks of software that the estimates do not stand for apart."""

Row = Mapping[str, str]
Estimate = Callable[[StepClock], float]


@dataclass(frozen=True, slots=True)
class Point:
    """One published figure.

    Attributes
    ----------
    table, quantity, software
        The file, what was measured, of which engine.
    role
        What it is for.
    llm, gpu, tp, dtype, kv_dtype
        What ran where.
    measured_s
        The figure, as a time.
    estimated_s
        Gives the same time by a step-time model.
    """

    table: str
    quantity: str
    software: str
    role: Role
    llm: str
    gpu: str
    tp: int
    dtype: Dtype
    kv_dtype: Dtype
    measured_s: float
    estimated_s: Estimate

    def ratio(self, gpu: GPU, efficiency: Efficiency | None = None) -> float:
        """Give estimate / measured on `gpu`, with other factors than its own where they are given."""
        model = roofline(
            llm(self.llm), gpu, self.tp, self.dtype, kv_dtype=self.kv_dtype, efficiency=efficiency
        )
        return self.estimated_s(StepClock(model)) / self.measured_s


def points() -> list[Point]:
    """Read all published figures of engines on GPUs and LLMs of the catalogue."""
    return [point for name, read in _TABLES.items() for row in _rows(name) for point in read(name, row)]


def steady_step_s(
    clock: StepClock, seqs: float, prompt: int, output: int, budget: int, cached: int = 0
) -> float:
    """Give the mean time of a step of an engine that keeps a number of equal requests running.

    Parameters
    ----------
    clock
        Step times.
    seqs
        Requests that decode at any time, > 0; each that ends is followed by another.
    prompt, output
        Tokens of a request.
    budget
        Tokens of a step at most.
    cached
        Tokens of each prompt that need no prefill, < `prompt`.

    Notes
    -----
    A step computes seqs * (prompt - cached) / output prompt tokens on average. Prompts come whole, or in chunks of
    what the budget leaves; between them lie steps that only decode. Requests are halfway through their outputs.

    Examples
    --------
    >>> from optimizer.problem import StepTime
    >>> clock = StepClock(StepTime.affine(base_s=0.01, per_prefill_token_s=1e-5))
    >>> round(steady_step_s(clock, seqs=10, prompt=100, output=50, budget=1000), 6)  # 20 prompt tokens per step
    0.0102
    """
    new = prompt - cached
    context = round(seqs * (prompt + output / 2))
    decoding = seconds(clock.step(decode_seqs=round(seqs), decode_context=context))
    per_step = seqs * new / output
    chunk = min(max(new, per_step), budget - seqs)
    share, prompts = per_step / chunk, max(1.0, chunk / new)
    reached = prompts * prompt if chunk >= new else cached + (new + chunk) / 2
    prefilling = seconds(
        clock.step(round(chunk), round(chunk * (cached + new / 2)), round(prompts), round(reached),
                   round(seqs), context)
    )  # fmt: skip
    return (1 - share) * decoding + share * prefilling if share < 1 else share * prefilling


# InferenceX: benchmark scripts in the repository. Lengths are drawn from 0.8 to 1 times the nominal ones; ten times
# as many requests as run at once, the first of them all at the start; KV cache in fp8, 8,192 tokens per step.
_NOMINAL, _WAVES, _BUDGET_8K = 0.9, 10, 8192


def _inferencex(table: str, row: Row) -> Iterator[Point]:
    seqs = int(row["concurrency"])
    prompt, output = (round(_NOMINAL * int(row[key])) for key in ("prompt_tokens", "output_tokens"))
    ours = row["software"].startswith("vLLM")
    role: Role = "other engine" if not ours else "fit" if seqs < 64 else "check"
    per_token = partial(steady_step_s, seqs=seqs, prompt=prompt, output=output, budget=_BUDGET_8K)
    yield _point(table, row, "time per output token", role, float(row["tpot_ms"]) / 1e3, per_token, "fp8")
    if ours:
        first = partial(_first_token_s, seqs=seqs, prompt=prompt, output=output)
        yield _point(table, row, "time to first token", role, float(row["ttft_ms"]) / 1e3, first, "fp8")


def _first_token_s(clock: StepClock, seqs: int, prompt: int, output: int) -> float:
    """Mean time to the first token in a closed loop: of the first wave, whose prompts queue, and of all others."""
    context = round((seqs - 1) * (prompt + output / 2))
    step = seconds(clock.step(decode_seqs=seqs, decode_context=context))
    own = seconds(clock.step(prompt, _pairs(prompt), 1, prompt, seqs - 1, context))
    moments, clock_s, decoding = [], 0.0, 0
    while decoding < seqs:
        batch = min(_BUDGET_8K // prompt, seqs - decoding)
        clock_s += _prefill_s(clock, batch, prompt, decoding)
        moments += batch * [clock_s]
        decoding += batch
    # The others arrive while a step runs, and wait for the one that asynchronous scheduling has composed already.
    return (float(np.mean(moments)) + (_WAVES - 1) * (step + own)) / _WAVES


def _prefill_s(clock: StepClock, batch: int, prompt: int, decoding: int = 0) -> float:
    work = (batch * prompt, batch * _pairs(prompt), batch, batch * prompt, decoding, decoding * prompt)
    return seconds(clock.step(*work))


def _pairs(prompt: int) -> int:
    return prompt * (prompt + 1) // 2


# 45 distinct prompts, repeated: all but the last block of each is in the prefix cache.
_BLOCK, _SEATS_128, _BUDGET_2K = 16, 128, 2048


def _inference_sim(table: str, row: Row) -> Iterator[Point]:
    prompt, output = int(row["prompt_tokens"]), int(row["output_tokens"])
    # The table's own time per token is half of the truth: it is taken from the two latencies.
    token_s = (float(row["e2e_mean_ms"]) - float(row["ttft_mean_ms"])) / 1e3 / (output - 1)
    per_token = partial(_open_loop_s, rate=float(row["requests_per_s"]), prompt=prompt, output=output)
    yield _point(table, row, "time per output token", "check", token_s, per_token)


def _open_loop_s(clock: StepClock, rate: float, prompt: int, output: int) -> float:
    """Mean step where requests come at a rate: as many run as arrive during one's outputs, or all seats."""

    def step_s(seqs: float) -> float:
        return steady_step_s(clock, seqs, prompt, output, _BUDGET_2K, prompt - _BLOCK)

    low, high = 1.0, float(_SEATS_128)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rate * output * step_s(middle) > middle else (low, middle)
    return step_s(high)


def _splitwise(table: str, row: Row) -> Iterator[Point]:
    prompt, batch, output = (int(row[key]) for key in ("prompt_tokens", "batch", "output_tokens"))

    def prompts_s(clock: StepClock) -> float:
        at_once = max(1, _BUDGET_8K // prompt)
        full, rest = divmod(batch, at_once)
        return full * _prefill_s(clock, at_once, prompt) + (_prefill_s(clock, rest, prompt) if rest else 0.0)

    token_s = partial(_decode_s, batch=batch, context=prompt + output // 2)
    yield _point(table, row, "prompts", "older", float(row["prompt_ms"]) / 1e3, prompts_s)
    yield _point(table, row, "decode step", "older", float(row["token_ms"]) / 1e3, token_s)


def _decode_s(clock: StepClock, batch: int, context: int) -> float:
    return seconds(clock.step(decode_seqs=batch, decode_context=batch * context))


def _vllm_ci(table: str, row: Row) -> Iterator[Point]:
    batch, prompt, output = (int(row[key]) for key in ("batch", "prompt_tokens", "output_tokens"))

    def latency_s(clock: StepClock) -> float:
        return _prefill_s(clock, batch, prompt) + (output - 1) * _decode_s(clock, batch, prompt + output // 2)

    yield _point(table, row, "latency of a batch", "check", float(row["latency_ms"]) / 1e3, latency_s)


# TensorRT-LLM: fp8 KV cache as the checkpoints ask for; its scheduler reserves a request's whole length.
_SEATS_TRT, _UTILISATION_TRT = 2048, 0.95


def _tensorrt_llm(table: str, row: Row) -> Iterator[Point]:
    prompt, output = int(row["prompt_tokens"]), int(row["output_tokens"])
    kv = _kv_tokens(row, "fp8", _UTILISATION_TRT, _BUDGET_8K)
    seqs = min(
        kv / (prompt + output), int(row["requests"]), _SEATS_TRT, _BUDGET_8K * output / (prompt + output)
    )
    token_s = 1 / float(row["output_tokens_per_s"])
    per_token = partial(_per_token_s, seqs=seqs, prompt=prompt, output=output, budget=_BUDGET_8K)
    yield _point(table, row, "time per token at full load", "other engine", token_s, per_token, "fp8")


def _gpustack(table: str, row: Row) -> Iterator[Point]:
    prompt, output = int(row["prompt_tokens"]), int(row["output_tokens"])
    kv = _kv_tokens(row, "bf16", 0.9, _BUDGET_2K)
    seqs = min(kv / (prompt + output / 2), 256, _BUDGET_2K * output / (prompt + output))
    # The page says H100 and no more. Where the memory's bandwidth decides, that is 1.2 times an A100: an SXM board
    # has 1.6 times the bandwidth, a PCIe board about the same.
    role: Role = "unknown board" if row["gpu"] == "h100" else "check" if prompt == 32000 else "fit"
    # Its throughput counts the prompts, too.
    token_s = (prompt + output) / output / float(row["total_tokens_per_s"])
    per_token = partial(_per_token_s, seqs=seqs, prompt=prompt, output=output, budget=_BUDGET_2K)
    yield _point(table, row, "time per token at full load", role, token_s, per_token)


def _per_token_s(clock: StepClock, seqs: float, prompt: int, output: int, budget: int) -> float:
    return steady_step_s(clock, seqs, prompt, output, budget) / seqs


def _kv_tokens(row: Row, kv_dtype: Dtype, utilisation: float, budget: int) -> int:
    return 16 * kv_blocks(
        llm(row["llm"]), gpu(row["gpu"]), tp=int(row["tp"]), dtype=cast("Dtype", row["dtype"]), kv_dtype=kv_dtype,
        utilisation=utilisation, max_num_batched_tokens=budget,
    )  # fmt: skip


_PROMPTS, _BATCHES, _CONTEXT = (256, 1024, 2000), (1, 16, 64, 128), 512
"""Where DistServe's fits are evaluated: their model stops at 2,048 tokens, their batches at 128 or so."""


def _distserve(table: str, row: Row) -> Iterator[Point]:
    def fit_s(kind: str, tokens: int, other: str, of_other: int) -> float:
        figures = (
            row[f"{kind}_ms"],
            row[f"{kind}_{'token' if kind == 'prefill' else 'context'}_ms"],
            row[f"{kind}_{other}_ms"],
        )
        fixed, per_token, per_other = map(float, figures)
        return (fixed + per_token * tokens + per_other * of_other) / 1e3

    for prompt in _PROMPTS:
        measured = fit_s("prefill", prompt, "square", prompt**2)
        yield _point(table, row, "prompts", "older", measured, partial(_prefill_s, batch=1, prompt=prompt))
    for batch in _BATCHES:
        measured = fit_s("decode" if batch < 95 else "decode95", batch * _CONTEXT, "seq", batch)
        decode = partial(_decode_s, batch=batch, context=_CONTEXT)
        yield _point(table, row, "decode step", "older", measured, decode)


_TABLES: dict[str, Callable[[str, Row], Iterator[Point]]] = {
    "inferencex": _inferencex,
    "inference-sim": _inference_sim,
    "vllm-ci": _vllm_ci,
    "gpustack": _gpustack,
    "tensorrt-llm": _tensorrt_llm,
    "splitwise": _splitwise,
    "distserve": _distserve,
}


def _point(
    table: str,
    row: Row,
    quantity: str,
    role: Role,
    measured_s: float,
    estimated_s: Estimate,
    kv_dtype: Dtype = "bf16",
) -> Point:
    dtype = cast("Dtype", row["dtype"])
    return Point(table, quantity, row["software"], role, row["llm"], row["gpu"], int(row["tp"]), dtype, kv_dtype,
                 measured_s, estimated_s)  # fmt: skip


def _rows(table: str) -> list[dict[str, str]]:
    path = catalogue_path("models") / "measurements" / "public" / f"{table}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))

"""The workloads on which online policies are compared, and the load at which they are.

Four public traces on one GPU, and a batch-like load that its KV cache cannot hold:

============ ======================================================== ==========================
name         requests                                                 engine
============ ======================================================== ==========================
conv         azure2023_conv, from the middle of the file on           llama3.1-8b@h200
code         azure2023_code                                           llama3.1-8b@h200
mooncake     mooncake_conversation, arrivals spread in their 3 s bins llama3.1-8b@h200
sharegpt     sharegpt_8k_lengths, Poisson arrivals (seed 0)           llama3.1-8b@h200
gsm8k        the 1,319 of GSM8K, Poisson arrivals at 25 a second      llama-65b-fp8@h200
============ ======================================================== ==========================

**Saturation rate** of a policy on a trace: the arrivals are moved together or apart on the time axis (`to_rate`) until,
within 1 %, the run is just not `saturated` as `optimizer.report.saturation` defines it (the queue grows as long as
requests arrive). Found by bisection, so if more load should ever make a run less saturated, one of the limits is
given. A finite trace shows an overload only from some 3 / sqrt(n) on, so the rate is so much too high: 5 % for 4,000.
Traces have bursts: at 0.9 of that rate there are minutes of overload, above all in `code`.

The first four run at a share of vllm-v1's saturation rate (FCFS), 0.9 unless said otherwise; GSM8K at about twice what
vllm-v1 serves. The traces are those of the shared folder (`OPTIMIZER_SHARED`, or beside the checkout).
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

from optimizer import Engine, Instance, Requests, engine, read_trace, simulate
from optimizer.problem import with_knowledge
from optimizer.report.saturation import saturation
from optimizer.traces import draw_arrivals, embedded, spread_ticks, to_rate, window

COUNT = 4000
TRACES = ("conv", "code", "mooncake", "sharegpt")
GSM8K_RATE = 25.0


def shared_traces() -> Path:
    """Give the folder of the public traces; it need not be there."""
    return Path(os.environ.get("OPTIMIZER_SHARED") or Path(__file__).parents[3] / "shared") / "traces"


def requests_of(name: str, count: int = COUNT) -> Requests:
    """Give the first requests of a trace by its name here, in their own time; nothing is known of their lengths."""
    folder = shared_traces()
    if name == "conv":
        requests = read_trace(folder / "azure2023_conv.csv").requests
        return window(requests, first=len(requests) // 2, count=count)
    if name == "code":
        return window(read_trace(folder / "azure2023_code.csv").requests, count=count)
    if name == "mooncake":
        requests = spread_ticks(read_trace(folder / "mooncake_conversation.jsonl").requests)
        return window(requests, count=count).replace(prefix=None)
    lengths = read_trace(folder / "sharegpt_8k_lengths.csv").requests.take(slice(0, count))
    return draw_arrivals(lengths, 1.0, seed=0)


def saturation_rate(
    requests: Requests, machine: Engine, policy: str = "vllm-v1", *, tolerance: float = 0.01
) -> float:
    """Find the highest rate of arrivals, in requests per second, at which a policy is not saturated."""

    def saturates(rate: float) -> bool:
        scaled = to_rate(requests, rate)
        schedule = simulate(Instance("rate", scaled, machine), policy).schedule
        return bool(saturation(schedule, scaled, machine)["label"] == "saturated")

    low = high = len(requests) / float(requests.arrival_s[-1])
    while saturates(low):
        low, high = low / 1.3, low
    while low == high or not saturates(high):
        low, high = high, high * 1.3
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        if saturates(middle):
            high = middle
        else:
            low = middle
    return low


@functools.cache
def vllm_rate(name: str, count: int = COUNT) -> float:
    """Give vllm-v1's saturation rate on a trace."""
    return saturation_rate(requests_of(name, count), engine("llama3.1-8b@h200"))


def case(
    name: str,
    seed: int,
    *,
    load: float = 0.9,
    count: int = COUNT,
    lengths: str = "noise:0.5",
    rate: float | None = None,
) -> Instance:
    """Give a workload, its lengths predicted with errors of a seed (GSM8K: arrivals of that seed, too).

    `rate`: vllm-v1's saturation rate where it is known already; None: it is searched.
    """
    if name == "gsm8k":
        arriving = draw_arrivals(embedded("gsm8k/gsm8k-1319").requests, GSM8K_RATE, seed=seed)
        return Instance(name, with_knowledge(arriving, lengths, seed=seed), engine("llama-65b-fp8@h200"))
    saturated = vllm_rate(name, count) if rate is None else rate
    scaled = to_rate(requests_of(name, count), load * saturated)
    return Instance(name, with_knowledge(scaled, lengths, seed=seed), engine("llama3.1-8b@h200"))

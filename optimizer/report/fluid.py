"""An estimate of the highest rate that an engine can serve, without simulating it."""

from __future__ import annotations

import math

import numpy as np

from optimizer.capacity.step_time import StepClock
from optimizer.problem import Engine, Requests, Schedule
from optimizer.units import TICKS_PER_SECOND


def fluid_rate(
    schedule: Schedule, requests: Requests, engine: Engine, full_batch: float | None = None
) -> float:
    """Estimate the rate in requests per second at which a full engine serves requests like these.

    A fluid of mean requests: as many as seats, KV cache and token budget allow run at once, each decodes a token per
    step, and as many are admitted as finish. The rate is what is admitted in a step over the mean time of a step.
    What a request computes is taken from the schedule, so prefix hits and recomputation count; contexts are those
    in the middle of a decode, weighted by its length. Queues, bursts and the order of service are left out: good to
    about 20 % for policies that fill their batches; for those that do not (static batches) only with `full_batch`.

    Parameters
    ----------
    schedule, requests, engine
        As simulated.
    full_batch
        How many requests run when the engine is full, where that was seen: in place of seats and KV cache.

    Examples
    --------
    Ten seats, steps of 0.1 s, and ten steps per request:

    >>> from optimizer.problem import Instance, StepTime
    >>> from optimizer.simulator import simulate
    >>> engine = Engine(name="toy", kv_blocks=100, max_num_seqs=10, step_time=StepTime.affine(base_s=0.1))
    >>> requests = Requests.from_columns({"prompt_tokens": [9] * 50, "output_tokens": [10] * 50})
    >>> round(fluid_rate(simulate(Instance("same", requests, engine)).schedule, requests, engine), 3)
    10.0
    """
    s, n = schedule, len(requests)
    times = s.steps[s.chunk_run].astype(np.float64)
    chunk, context = s.chunk_tokens.astype(np.float64), s.chunk_context.astype(np.float64)
    prompt = float(chunk @ times) / n
    pairs = times * (chunk * context + chunk * (chunk + 1) / 2) + chunk**2 * times * (times - 1) / 2
    out = requests.output_tokens.astype(np.float64)
    decodes = float(out.mean()) - 1  # the first token comes with the prompt
    middle = float((requests.prompt_tokens + out / 2) @ out / out.sum())
    budget = s.max_num_batched_tokens or math.inf
    # A request stays for its decodes and one step of its prompt; its seat may come free a step later.
    stay = decodes + 1 + engine.async_scheduling
    full = full_batch or min(engine.max_num_seqs, engine.kv_tokens / _held(s, requests, middle))
    running = min(max(full, 1.0), budget * stay / (prompt + decodes))
    admitted = running / stay
    decoding = admitted * decodes
    # Steps with a prompt: those that somebody enters (at random), or as many as the budget needs.
    share = min(1.0, max(1 - math.exp(-admitted), admitted * prompt / max(budget - decoding, 1.0)))
    each = admitted / share
    clock = StepClock(engine.step_time)
    batch = {"decode_seqs": round(decoding), "decode_context": round(decoding * middle)}
    work = (max(1, round(each * prompt)), round(each * float(pairs.sum()) / n), max(1, round(each)))
    alone = clock.step(**batch) if batch["decode_seqs"] else 0
    if _mixes(s) or not alone:
        step = share * clock.step(*work, work[0], **batch) + (1 - share) * alone
    else:  # prompts have steps to themselves
        step = share * clock.step(*work, work[0]) + alone
    return admitted / step * TICKS_PER_SECOND


def _mixes(s: Schedule) -> bool:
    """Whether prompts and decodes shared steps, or never had the occasion; not if prompts made decodes wait."""
    runs, prefills = len(s.steps), s.prefill_tokens > 0
    begun = np.bincount(s.decode_first_run, minlength=runs + 1) - np.bincount(
        s.decode_last_run + 1, minlength=runs + 1
    )
    waits = prefills & (s.decode_seqs == 0) & (np.cumsum(begun)[:runs] > 0)
    return bool((prefills & (s.decode_seqs > 0)).any() or not waits.any())


def _held(s: Schedule, requests: Requests, middle: float) -> float:
    """KV tokens that a running request holds, averaged over its stay."""
    if s.reserves:
        held = np.zeros(len(requests))
        np.maximum.at(held, s.hold_request, s.hold_tokens.astype(np.float64))
        return float(held @ requests.output_tokens / requests.output_tokens.sum())
    return middle + s.block_tokens / 2

"""From a golden step trace of vLLM's scheduler to a schedule, each step one run."""

from __future__ import annotations

import numpy as np

from optimizer.problem import Schedule
from optimizer.units import TICKS_PER_SECOND, moment_ticks, ticks


def _prefix_hits(golden: dict) -> list[tuple[int, int, int]]:
    """Solve for the (step, request, tokens) of every admission, hits of zero tokens included.

    The file gives each step's total context: the tokens scheduled since the admissions and what these found
    in the cache. That is a linear equation per step; each request's length gives one more.
    """
    admissions: list[list[int]] = []
    live: dict[int, list[int]] = {}  # request: its admission, tokens scheduled since
    equations: list[tuple[list[int], int]] = []
    for number, step in enumerate(golden["steps"]):
        for r in step["preempted"]:
            del live[r]
        for r, n in step["tokens"]:
            if r not in live:
                live[r] = [len(admissions), 0]
                admissions.append([number, r])
            live[r][1] += n
        scheduled = [live[r] for r, _ in step["tokens"]]
        equations.append(([a for a, _ in scheduled], step["context"] - sum(n for _, n in scheduled)))
    for row, (admission, since) in ((golden["requests"][r], live[r]) for r in live):
        equations.append(([admission], row["prompt_tokens"] + row["output_tokens"] - 1 - since))
    left = np.zeros((len(equations), len(admissions)))
    for k, (terms, _) in enumerate(equations):
        left[k, terms] = 1
    hits, _, rank, _ = np.linalg.lstsq(left, np.array([right for _, right in equations], float), rcond=None)
    assert rank == len(admissions), "the totals do not determine the prefix hits"
    return [(*admission, round(hit)) for admission, hit in zip(admissions, hits, strict=True)]


def golden_schedule(golden: dict) -> Schedule:
    """Take participants, tokens and finishes from the file; add up the times anew, exactly.

    Starts in the file are rounded to the nanosecond: they only tell where the engine waited.
    """
    hits = {(number, r): n for number, r, n in _prefix_hits(golden)}
    cost, prompts = golden["step_seconds"], [row["prompt_tokens"] for row in golden["requests"]]
    generated, target, context = [0] * len(prompts), list(prompts), {}
    chunk, decode, preempt, cached, runs = [], [], [], [], []
    segment: dict[int, list[int]] = {}
    now = 0
    for number, step in enumerate(golden["steps"]):
        for r in step["preempted"]:
            preempt.append((number, r))
            del context[r]
            segment.pop(r, None)
            target[r] = prompts[r] + generated[r]
        tokens = decodes = decode_context = 0
        for r, n in step["tokens"]:
            if r not in context:
                context[r] = hits[number, r]
                cached += [(number, r, context[r])] if context[r] else []
            if context[r] < target[r]:
                chunk.append((number, r, n, context[r]))
                tokens += n
            else:
                if r not in segment:
                    segment[r] = [r, number, number]
                    decode.append(segment[r])
                segment[r][2] = number
                decodes, decode_context = decodes + 1, decode_context + context[r] + 1
            context[r] += n
            generated[r] += context[r] >= target[r]
        start = moment_ticks(step["start"])
        now = now if abs(start - now) < ticks(1e-6) else start
        time = ticks(cost["per_step"]) + ticks(cost["per_token"]) * (tokens + decodes)
        time += ticks(cost["per_context_token"]) * step["context"]
        runs.append((now, now + time, time, 1, decodes, decode_context, tokens))
        now += time
    start, end, first, *counts = zip(*runs, strict=True)

    def table(name: str, rows: list, columns: tuple[str, ...]) -> dict[str, np.ndarray]:
        values = np.array(rows, np.int64).reshape(-1, len(columns)).T
        return {f"{name}_{c}": v for c, v in zip(columns, values, strict=True)}

    return Schedule(
        policy=golden["engine"],
        block_tokens=golden["block_tokens"],
        max_num_batched_tokens=golden["max_num_batched_tokens"],
        start_s=np.array(start) / TICKS_PER_SECOND,
        end_s=np.array(end) / TICKS_PER_SECOND,
        first_step_s=np.array(first) / TICKS_PER_SECOND,
        **dict(
            zip(
                ("steps", "decode_seqs", "decode_context", "prefill_tokens"),
                map(np.array, counts),
                strict=True,
            )
        ),
        **table("chunk", chunk, ("run", "request", "tokens", "context")),
        **table("decode", decode, ("request", "first_run", "last_run")),
        **table("preempt", preempt, ("run", "request")),
        **table("cached", cached, ("run", "request", "tokens")),
        **table("hold", [], ("request", "first_run", "last_run", "offset", "tokens")),
        first_token_s=np.array(golden["first_token_s"]),
        finish_s=np.array(golden["finished_s"]),
    )

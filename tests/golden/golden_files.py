"""Reads the golden step traces: what a real engine's scheduler decided, under a virtual clock."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np

from optimizer.problem import Engine, Instance, PrefixHashes, Requests, StepTime

ANSWER_TOKEN = 7
"""What the engine in the golden traces generates, always: answers share blocks as prompts do."""


def read_golden(path: Path) -> dict:
    packed = path.read_bytes()
    return json.loads(gzip.decompress(packed) if path.suffix == ".gz" else packed)


def golden_instance(golden: dict) -> Instance:
    """The requests and the engine of a golden file."""
    rows = golden["requests"]
    prefix = None
    if golden["prefix_caching"]:
        texts = [row["prompt_token_ids"] + [ANSWER_TOKEN] * row["output_tokens"] for row in rows]
        prefix = chained_hashes(texts, golden["block_tokens"])
    requests = Requests.from_columns(
        {
            "arrival_s": [row["arrival_s"] for row in rows],
            "prompt_tokens": [row["prompt_tokens"] for row in rows],
            "output_tokens": [row["output_tokens"] for row in rows],
        },
        prefix=prefix,
    )
    cost = golden["step_seconds"]
    engine = Engine(
        name=golden["name"],
        kv_blocks=golden["usable_blocks"],
        block_tokens=golden["block_tokens"],
        max_num_batched_tokens=golden["max_num_batched_tokens"],
        max_num_seqs=golden["max_num_seqs"],
        prefix_caching=golden["prefix_caching"],
        step_time=StepTime.affine(
            base_s=cost["per_step"],
            per_prefill_token_s=cost["per_token"],
            per_decode_seq_s=cost["per_token"],
            per_prefill_context_s=cost["per_context_token"],
            per_decode_context_s=cost["per_context_token"],
        ),
    )
    return Instance(golden["name"], requests, engine)


def golden_options(golden: dict) -> dict:
    """What the engine was told beyond its defaults, by the names of our options."""
    names = {
        "long_prefill_token_threshold": "long_prefill_token_threshold",
        "watermark": "watermark",
        "scheduler_reserve_full_isl": "reserve_full_prompt",
    }
    return {ours: golden[theirs] for theirs, ours in names.items() if theirs in golden}


def chained_hashes(prompts: list[list[int]], block_tokens: int) -> PrefixHashes:
    """Number the distinct prefixes of full blocks: equal ids mean equal prefixes."""
    numbers: dict[tuple[int, ...], int] = {}
    ids, starts = [], [0]
    for prompt in prompts:
        chain = -1
        for start in range(0, len(prompt) - block_tokens + 1, block_tokens):
            key = (chain, *prompt[start : start + block_tokens])
            chain = numbers.setdefault(key, len(numbers))
            ids.append(chain)
        starts.append(len(ids))
    return PrefixHashes(np.array(ids, dtype=np.int64), np.array(starts, dtype=np.int64), block_tokens, True)

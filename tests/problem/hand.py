"""A schedule written by hand: small enough to compute every number of it with pencil and paper."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from optimizer.problem import Engine, Requests, Schedule, StepTime

ENGINE = Engine(name="toy", kv_blocks=10, block_tokens=4, step_time=StepTime.affine(base_s=1.0))
REQUESTS = Requests.from_columns(
    {"arrival_s": [1.0, 2.0, 2.5, 3.0], "prompt_tokens": [6, 4, 5, 9], "output_tokens": [5, 1, 3, 2]}
)


def schedule(**columns) -> Schedule:
    """A schedule from the columns that are given; the others are empty."""
    nothing = {f.name: [] for f in fields(Schedule)}
    header = {"policy": "by hand", "block_tokens": 4, "max_num_batched_tokens": 512}
    given = nothing | header | columns
    return Schedule(
        **{
            name: value
            if name in header
            else np.array(value, dtype=np.float64 if name.endswith("_s") else np.int64)
            for name, value in given.items()
        }
    )


def by_hand() -> Schedule:
    """Request 0 is alone at first, 1 has one token, 2 is preempted once, and 3 is never served.

    | run | time | steps | what |
    |---|---|---|---|
    | 0 | 1 to 2 | 1 | 0 prefills 6 tokens |
    | 1 | 2 to 5 | 3 of 0.5, 1 and 1.5 s | 0 decodes |
    | 2 | 5 to 6 | 1 | 1 prefills 4 tokens, 0 decodes its last |
    | 3 | 7 to 9 | 1 | 2 prefills 5 tokens |
    | 4 | 9 to 10 | 1 | 2 decodes |
    | 5 | 10 to 12 | 1 | 2 was thrown out, prefills 7 tokens |
    """
    return schedule(
        start_s=[1, 2, 5, 7, 9, 10],
        end_s=[2, 5, 6, 9, 10, 12],
        first_step_s=[1, 0.5, 1, 2, 1, 2],
        steps=[1, 3, 1, 1, 1, 1],
        decode_seqs=[0, 1, 1, 0, 1, 0],
        decode_context=[0, 7, 10, 0, 6, 0],
        prefill_tokens=[6, 0, 4, 5, 0, 7],
        chunk_run=[0, 2, 3, 5],
        chunk_request=[0, 1, 2, 2],
        chunk_tokens=[6, 4, 5, 7],
        chunk_context=[0, 0, 0, 0],
        decode_request=[0, 2],
        decode_first_run=[1, 4],
        decode_last_run=[2, 4],
        preempt_run=[5],
        preempt_request=[2],
        first_token_s=[2, 6, 9, np.nan],
        finish_s=[6, 6, 12, np.nan],
    )

"""A policy sees an output length only through what the request makes known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from optimizer.errors import PolicyError
from optimizer.policies import policy_names
from optimizer.problem import Engine, Instance, Requests, StepTime, with_knowledge
from optimizer.simulator import simulate

CAP = 64
NEEDS_EXACT_LENGTHS = {"orca-pow2", "orca-oracle"}


def decisions_until(schedule, moment):
    return [
        (round(step.start_s, 9), sorted(step.prefill), sorted(step.decode), sorted(step.preempted))
        for step in schedule.iterate()
        if round(step.start_s, 9) < round(moment, 9)
    ]


def tokens_out(schedule, moment, prompt_tokens):
    """Output tokens of each request that are out at the start of a run."""
    out = np.zeros(len(prompt_tokens), dtype=int)
    for run in np.flatnonzero(schedule.end_s <= moment):
        for row in np.flatnonzero(schedule.chunk_run == run):
            request = schedule.chunk_request[row]
            computed = schedule.chunk_context[row] + schedule.chunk_tokens[row] * schedule.steps[run]
            out[request] += computed == prompt_tokens[request] + out[request]
        if schedule.decode_seqs[run]:
            takes_part = (schedule.decode_first_run <= run) & (run <= schedule.decode_last_run)
            out[schedule.decode_request[takes_part]] += schedule.steps[run]
    return out


@pytest.mark.parametrize("policy", [p for p in policy_names() if p not in NEEDS_EXACT_LENGTHS])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_hidden_futures_do_not_change_past_decisions(policy, data):
    n = data.draw(st.integers(2, 10))
    lengths = st.lists(st.integers(1, 40), min_size=n, max_size=n)
    prompts, outputs, others = data.draw(lengths), data.draw(lengths), data.draw(lengths)
    gaps = data.draw(st.lists(st.sampled_from([0, 3, 40, 90]), min_size=n, max_size=n))
    engine = Engine(
        name="toy",
        kv_blocks=data.draw(st.integers(10, 30)),
        block_tokens=8,
        max_num_batched_tokens=32,
        max_num_seqs=data.draw(st.integers(1, 6)),
        prefix_caching=data.draw(st.booleans()),
        step_time=StepTime.affine(base_s=0.004, per_prefill_token_s=2e-5, per_decode_seq_s=2e-5),
    )
    base = with_knowledge(
        Requests.from_columns(
            {
                "arrival_s": np.cumsum(gaps) / 1000,
                "prompt_tokens": prompts,
                "output_tokens": outputs,
                "max_output_tokens": [CAP] * n,
            }
        ),
        data.draw(st.sampled_from(["none", "noise:0.6"])),
        seed=3,
    )
    try:
        real = simulate(Instance("real", base, engine), policy, seed=5).schedule
        moment = data.draw(st.sampled_from(sorted(set(real.start_s.tolist()))))
        out = tokens_out(real, moment, prompts)
        # What has not happened by then happens otherwise: unfinished requests get other lengths.
        done = real.finish_s <= moment
        changed = np.where(done, base.output_tokens, np.clip(np.maximum(others, out + 1), 1, CAP))
        other = simulate(
            Instance("other", base.replace(output_tokens=changed), engine), policy, seed=5
        ).schedule
    except PolicyError as error:
        assume(" raised " in str(error))
        raise
    assert decisions_until(other, moment) == decisions_until(real, moment)

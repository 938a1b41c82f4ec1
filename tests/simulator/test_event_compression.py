"""Event-compressed and step-by-step simulation give the same schedule, on every policy."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError, PolicyError
from optimizer.policies import policy_names
from optimizer.problem import (
    Engine,
    Instance,
    PrefixHashes,
    Requests,
    StepPiece,
    StepRegime,
    StepTime,
    with_knowledge,
)
from optimizer.simulator import simulate

EXAMPLES = int(os.environ.get("OPTIMIZER_EXAMPLES", "60"))

# Times in milliseconds that collide often: arrivals fall on step boundaries, steps tie.
STEP_TIMES = [
    StepTime.affine(base_s=0.004, per_prefill_token_s=2e-5, per_decode_seq_s=2e-5, per_decode_context_s=1e-8),
    StepTime.affine(base_s=0.010),
    StepTime(
        regimes=(
            StepRegime(
                pieces=(
                    StepPiece(base_s=0.005, per_prefill_attention_s=1e-9),
                    StepPiece(
                        base_s=0.001,
                        per_prefill_token_s=3e-5,
                        per_decode_seq_s=1e-3,
                        per_decode_context_s=7e-6,
                    ),
                )
            ),
        )
    ),
    # Steps that grow many times longer within a run.
    StepTime.affine(base_s=1e-6, per_prefill_attention_s=1e-5, per_decode_context_s=1e-4),
    StepTime(
        regimes=(
            StepRegime(phase="prefill", pieces=(StepPiece(base_s=0.003, per_prefill_token_s=1e-4),)),
            StepRegime(
                phase="any",
                pieces=(StepPiece(base_s=0.002, per_decode_context_s=1e-5), StepPiece(base_s=0.004)),
            ),
            StepRegime(
                phase="decode", min_tokens=3, pieces=(StepPiece(base_s=0.006, per_decode_seq_s=1e-5),)
            ),
        )
    ),
]


@st.composite
def instances(draw):
    n = draw(st.integers(1, 14))
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    prompts = draw(st.lists(st.integers(1, 60), min_size=n, max_size=n))
    outputs = draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))
    gaps = draw(st.lists(st.sampled_from([0, 0, 1, 4, 10, 33, 200]), min_size=n, max_size=n))
    budget = draw(st.sampled_from([8, 32, 512]))
    prefix = None
    caching = draw(st.booleans())
    if caching and draw(st.booleans()):
        families = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
        ids = [
            [f * 1000 + i for i in range(p // block_tokens)] for f, p in zip(families, prompts, strict=True)
        ]
        starts = np.cumsum([0, *map(len, ids)])
        prefix = PrefixHashes(np.array([i for row in ids for i in row], dtype=np.int64), starts, block_tokens)
    requests = Requests.from_columns(
        {
            "arrival_s": np.cumsum(gaps) / 1000,
            "prompt_tokens": prompts,
            "output_tokens": outputs,
            "max_output_tokens": [max(o, draw(st.integers(1, 48))) for o in outputs],
        },
        prefix=prefix,
    )
    knowledge = draw(st.sampled_from(["exact", "exact", "none", "noise:0.5", "interval:0.4"]))
    longest = max(-(-(p + o) // block_tokens) for p, o in zip(prompts, outputs, strict=True))
    engine = Engine(
        name="toy",
        kv_blocks=longest + draw(st.sampled_from([1, 2, 5, 20, 1000])),
        block_tokens=block_tokens,
        max_num_batched_tokens=budget,
        max_num_seqs=draw(st.integers(1, 8)),
        prefix_caching=caching,
        async_scheduling=draw(st.booleans()),
        step_time=draw(st.sampled_from(STEP_TIMES)),
    )
    return Instance("drawn", with_knowledge(requests, knowledge, seed=n), engine)


def outcome(instance, policy, **how):
    """What a simulation gives, or the error it ends in: both modes must agree on that as well."""
    try:
        simulation = simulate(instance, policy, seed=7, **how)
    except InputError as error:
        return str(error)
    except PolicyError as error:
        if " raised " in str(error):
            raise
        return str(error)
    schedule, metrics = simulation.schedule, simulation.metrics
    steps = [(sorted(s.prefill), sorted(s.decode), sorted(s.preempted)) for s in schedule.iterate()]
    starts = [s.start_s for s in schedule.iterate()]
    kv_use = metrics.kv_use_mean, metrics.kv_use_peak
    return steps, starts, kv_use, schedule.first_token_s.tolist(), schedule.finish_s.tolist()


@pytest.mark.parametrize("policy", policy_names())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(instance=instances())
def test_same_schedule_as_step_by_step(policy, instance):
    fast, slow = outcome(instance, policy), outcome(instance, policy, step_by_step=True)
    if isinstance(slow, str):
        assert fast == slow
        return
    assert fast[0] == slow[0]
    assert fast[1] == pytest.approx(slow[1], abs=1e-12)
    assert fast[2] == pytest.approx(slow[2], rel=1e-9)
    assert fast[3:] == slow[3:]
    assert not np.isnan(fast[4]).any()

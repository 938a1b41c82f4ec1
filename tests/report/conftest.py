from __future__ import annotations

import pytest

from optimizer.problem import Engine, Instance, Requests, StepTime, with_knowledge
from optimizer.simulator import simulate
from optimizer.traces import generate

STEP = StepTime.affine(
    base_s=0.005, per_prefill_token_s=1e-5, per_decode_seq_s=2e-5, per_decode_context_s=1e-8
)


@pytest.fixture(scope="session")
def under_pressure():
    """400 chats on a cache so small that requests are preempted again and again."""
    requests = with_knowledge(generate("chat", 400, 1, rate=100.0), "exact")
    engine = Engine(name="toy", kv_blocks=260, max_num_batched_tokens=256, max_num_seqs=64, step_time=STEP)
    simulation = simulate(Instance("chats", requests, engine))
    assert simulation.metrics.summary()["preemptions"] > 20
    return simulation


@pytest.fixture
def by_hand():
    """Three requests whose steps can be counted: a chunked prompt, a late arrival, a single output token."""
    requests = Requests.from_columns(
        {"ids": ["a", "b", "c"], "arrival_s": [0.0, 0.005, 1.0], "prompt_tokens": [30, 10, 5], "output_tokens": [4, 1, 2],
         "tenant": ["x", "y", "x"]}
    )  # fmt: skip
    engine = Engine(name="toy", kv_blocks=50, max_num_batched_tokens=20, max_num_seqs=8,
                    step_time=StepTime.affine(base_s=0.01))  # fmt: skip
    return simulate(Instance("three", requests, engine))

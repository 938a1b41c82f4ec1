"""vllm-v1 decides what vLLM's own scheduler decided: step by step, request by request, token by token."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.simulator import simulate
from tests.golden.golden_files import golden_instance, golden_options, read_golden


@pytest.mark.parametrize("step_by_step", [False, True], ids=["event-compressed", "step-by-step"])
def test_same_steps_preemptions_and_times(golden_path, step_by_step):
    golden = read_golden(golden_path)
    simulation = simulate(
        golden_instance(golden), "vllm-v1", step_by_step=step_by_step, options=golden_options(golden)
    )
    ours = list(simulation.schedule.iterate())
    for number, (step, real) in enumerate(zip(ours, golden["steps"], strict=False)):
        tokens = sorted([*step.prefill, *((request, 1) for request in step.decode)])
        assert tokens == sorted((r, n) for r, n in real["tokens"]), f"step {number}"
        assert sorted(step.preempted) == sorted(real["preempted"]), f"step {number}"
        assert step.start_s == pytest.approx(real["start"], abs=1e-6), f"step {number}"
    assert len(ours) == len(golden["steps"])
    np.testing.assert_allclose(simulation.schedule.first_token_s, golden["first_token_s"], atol=1e-6)
    np.testing.assert_allclose(simulation.schedule.finish_s, golden["finished_s"], atol=1e-6)
    assert simulation.metrics.makespan_s == pytest.approx(golden["makespan_s"], abs=1e-6)
    assert simulation.metrics.preemptions.sum() == golden["preemptions"]

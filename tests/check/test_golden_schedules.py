"""What vLLM's scheduler really decided keeps every rule, its times and its prefix hits included."""

from __future__ import annotations

import dataclasses

import pytest

from optimizer.check import Rule, check
from optimizer.problem.kv_use import kv_use
from tests.check.golden import golden_schedule
from tests.golden.golden_files import golden_instance, read_golden

NAMES = (
    "few-seats", "long-prompts-small-budget", "plenty-budget2048-offline", "plenty-budget512",
    "scarce-offline-preempting", "scarce-preempting", "shared-prefixes", "shared-prefixes-scarce",
    "tight-everything",
)  # fmt: skip


@pytest.fixture(params=NAMES)
def golden(request, shared) -> dict:
    path = shared / "golden" / "vllm-0.26" / f"{request.param}.json"
    if not path.is_file():
        pytest.skip(f"golden step traces are not here: {path} is absent")
    return read_golden(path)


def test_golden_schedules_are_good(golden):
    made, schedule = golden_instance(golden), golden_schedule(golden)
    report = check(schedule, made)
    assert report, str(report)
    assert len(schedule.preempt_run) == golden["preemptions"]
    mean, peak = kv_use(schedule, made.requests, made.engine)
    assert 0 < mean < peak <= 1


def test_one_block_less_is_noticed(golden):
    """The blocks of each step are counted exactly: with less than the fullest step holds, that step is named."""
    made, schedule = golden_instance(golden), golden_schedule(golden)
    _, peak = kv_use(schedule, made.requests, made.engine)
    needed = round(peak * made.engine.kv_blocks)
    smaller = dataclasses.replace(made, engine=made.engine.replace(kv_blocks=needed - 1))
    assert check(schedule, smaller).rules >= {Rule.CAPACITY}

"""Fixtures for the tests of traces."""

from __future__ import annotations

import pytest

from optimizer.problem import Engine, StepTime


@pytest.fixture
def engine() -> Engine:
    return Engine(name="toy", kv_blocks=100, step_time=StepTime.affine(base_s=0.01))

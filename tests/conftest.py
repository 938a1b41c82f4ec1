"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run, but for the constants of whatever modules are loaded, which Hypothesis tries as well.
# `--hypothesis-profile default` draws others.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Give the folder of real traces and measurements, which lies beside a checkout, or skip."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("OPTIMIZER_SHARED") or beside)
    if not folder.is_dir():
        pytest.skip(f"needs the real traces: {folder} is not there, and OPTIMIZER_SHARED names no other")
    return folder

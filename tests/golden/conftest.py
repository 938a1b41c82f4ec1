"""`pytest tests/golden --golden-dir DIR` runs every golden file of a folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--golden-dir", action="append", default=[], help="a folder of golden step traces (*.json)"
    )


def golden_paths(config) -> list[Path]:
    shared = Path(os.environ.get("OPTIMIZER_SHARED", Path(__file__).parents[3] / "shared"))
    own = Path(__file__).parent / "vllm-0.26"
    folders = [Path(d) for d in config.getoption("--golden-dir")] or [own, shared / "golden" / "vllm-0.26"]
    return [
        path for folder in folders for path in sorted([*folder.glob("*.json"), *folder.glob("*.json.gz")])
    ]


def pytest_generate_tests(metafunc):
    if "golden_path" in metafunc.fixturenames:
        paths = golden_paths(metafunc.config)
        if not paths:
            raise pytest.UsageError("there is no *.json or *.json.gz in the folders given with --golden-dir")
        metafunc.parametrize("golden_path", paths, ids=[p.name.partition(".")[0] for p in paths])

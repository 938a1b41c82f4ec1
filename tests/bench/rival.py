"""NVIDIA's simulator, `dynamo.replay` of ai-dynamo, on the same requests with the same limits.

It comes from an environment of its own: `python3 -m venv rival && rival/bin/pip install ai-dynamo==1.4.2`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.machine import Machine, Took

SETTINGS = "dynamo.replay, offline, vllm, same blocks, seats, budget, no prefix caching, its own step times"


@dataclass(frozen=True, slots=True)
class Rival:
    """A Python that has ai-dynamo."""

    python: Path
    version: str

    @classmethod
    def find(cls, machine: Machine, python: Path) -> Rival:
        """Ask a Python for the version of its ai-dynamo."""
        ask = "from importlib.metadata import version; print(version('ai-dynamo'))"
        return cls(python, machine.run([python, "-c", ask]).output.strip())

    def replay(
        self, machine: Machine, trace: Path, limits: dict[str, Any], folder: Path
    ) -> tuple[Took, float]:
        """Replay a Mooncake trace; give what the process took, and the seconds it counts for the simulation."""
        engine = {
            "engine_type": "vllm",
            "num_gpu_blocks": limits["kv_blocks"],
            "block_size": limits["block_tokens"],
            "max_num_seqs": limits["max_num_seqs"],
            "max_num_batched_tokens": limits["max_num_batched_tokens"],
            "enable_prefix_caching": False,
        }
        report = folder / "rival.json"
        took = machine.run(
            [self.python, "-m", "dynamo.replay", trace, "--trace-format", "mooncake", "--replay-mode", "offline",
             "--extra-engine-args", json.dumps(engine), "--report-json", report],
            result=report,
        )  # fmt: skip
        return took, json.loads(took.result)["wall_time_ms"] / 1000

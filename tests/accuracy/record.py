"""The accuracy on record: `python tests/accuracy/record.py` measures it and writes `record.yaml` anew.

A figure within the target of the project is held to the target; one beyond it to the recorded error and a
tolerance, so that it can only get better. Simulations are deterministic: the tolerance only covers rounding.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from optimizer.capacity.fit import errors, fit_step_time, split
from optimizer.capacity.steplog import read_step_log
from optimizer.catalogue import catalogue_path
from optimizer.validation import RunComparison, validate

FILE = Path(__file__).with_name("record.yaml")
TOLERANCE = 0.002
"""Added to a recorded error that misses its target."""
RUN_TARGETS = {
    "wall": 0.03, "e2e_mean": 0.04, "e2e_p50": 0.04, "ttft_mean": 0.08, "ttft_p99": 0.15, "preemptions": 0.10,
}  # fmt: skip
STEP_TARGETS = {"median": 0.025, "mean": 0.04, "total": 0.01}
STEPS = {"llama3.1-8b@h200": "steps-llama3.1-8b-bf16.csv", "llama2-13b@h200": "steps-llama2-13b-bf16.csv"}
"""By card: its synchronous steps."""
HEAD = f"""\
# Written by tests/accuracy/record.py. Errors are relative, those of runs and totals signed. `limit` is what the gate
# allows for the absolute value: the target where it is met, else the recorded error plus {TOLERANCE:g}.
"""


def entry(error: float, target: float) -> dict[str, float]:
    """Give the record of a figure."""
    return {
        "error": round(error, 5),
        "limit": target if abs(error) <= target else round(abs(error) + TOLERANCE, 5),
        "target": target,
    }


def step_errors(card: str) -> dict[str, float]:
    """Fit the model of a card's synchronous steps to four fifths of them, and judge it on the rest."""
    fitted, held_out = split(read_step_log(catalogue_path("models") / "measurements" / "h200" / STEPS[card]))
    found = errors(fit_step_time(fitted), held_out)["all"]
    return {name: getattr(found, name) for name in STEP_TARGETS}


def run_errors(run: RunComparison) -> dict[str, float | None]:
    """Give the errors of a run that have a target; None: nothing to compare with."""
    return {name: run.error(name) for name in RUN_TARGETS}


def measure(folder: Path) -> dict[str, Any]:
    """Give the whole record."""
    steps = {
        card: {name: entry(error, STEP_TARGETS[name]) for name, error in step_errors(card).items()}
        for card in STEPS
    }
    runs = {
        run.run: {
            name: entry(error, RUN_TARGETS[name])
            for name, error in run_errors(run).items()
            if error is not None
        }
        for run in validate(folder)
    }
    return {"steps": steps, "runs": runs}


def read() -> dict[str, Any]:
    """Give what is on record."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def main() -> None:
    """Write the record anew, from the measured runs in the shared folder."""
    beside = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("OPTIMIZER_SHARED") or beside) / "h200"
    if not folder.is_dir():
        sys.exit(
            f"needs the measured runs: {folder} is not there, and OPTIMIZER_SHARED names no other folder"
        )
    text = yaml.safe_dump(measure(folder), sort_keys=False, default_flow_style=None, width=110)
    FILE.write_text(HEAD + text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()

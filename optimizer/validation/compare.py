"""`validate`: replays measured runs in the simulator, and says how far it is from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.problem import Engine, Instance
from optimizer.problem.columns import Floats
from optimizer.simulator import Simulation, simulate
from optimizer.validation.engines import engine_of, took_part
from optimizer.validation.runs import MeasuredRun, find_runs, read_run

FIGURES = (
    "wall", "ttft_mean", "ttft_p50", "ttft_p99", "e2e_mean", "e2e_p50", "e2e_p99", "steps", "preemptions",
)  # fmt: skip
"""What is compared, in the order in which it is shown; all but the last two in seconds."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a run, measured and simulated.

    Examples
    --------
    >>> Figure(2.0, 2.5).error
    0.25
    >>> Figure(0, 0).error, Figure(None, 3).error
    (0.0, None)
    """

    real: float | None
    simulated: float

    @property
    def error(self) -> float | None:
        """Signed and relative to the real one; None where that is unknown, or 0 and the other is not."""
        if self.real is None or (self.real == 0 and self.simulated != 0):
            return None
        return self.simulated / self.real - 1 if self.real else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class RunComparison:
    """A measured run beside its simulation.

    Attributes
    ----------
    measured
        What the engine did.
    simulation
        What the simulator made of the same requests under the same limits.
    card
        Name, or path, of the engine card.
    in_fit
        Whether the card says that the run took part in a fit of its coefficients: then a small error proves less.
    figures
        By the names of `FIGURES`. Wall time is from the first request sent to the last one finished; latencies
        are the client's, from sending on.
    """

    measured: MeasuredRun
    simulation: Simulation
    card: str
    in_fit: bool
    figures: Mapping[str, Figure]

    @property
    def run(self) -> str:
        """`<model>-<workload>`."""
        return self.measured.name

    @property
    def engine(self) -> Engine:
        """What was simulated."""
        return self.simulation.instance.engine

    def error(self, figure: str) -> float | None:
        """Give the signed relative error of a figure; None where there is nothing to compare with."""
        return self.figures[figure].error

    def to_document(self) -> dict[str, Any]:
        """Give the JSON form: for each figure its `_real` and `_simulated` value, and its `_error`."""
        limits = self.measured.limits
        document: dict[str, Any] = {
            "run": self.run,
            "model": limits.model,
            "workload": limits.workload,
            "engine": self.card,
            "policy": self.simulation.policy,
            "requests": len(self.measured.requests),
            "part_of_fit": self.in_fit,
            "arrivals": "sent" if self.measured.sent else "planned",
            "wall_stated_s": limits.wall_s,
        }
        for name, figure in self.figures.items():
            unit = "" if name in ("steps", "preemptions") else "_s"
            document[f"{name}_real{unit}"] = figure.real
            document[f"{name}_simulated{unit}"] = figure.simulated
            document[f"{name}_error"] = figure.error
        return document


def validate(
    folder: str | Path, policy: str = "vllm-v1", *, engine_for: Mapping[str, str] | None = None
) -> list[RunComparison]:
    """Replay every run of a folder in the simulator and compare.

    Parameters
    ----------
    folder
        With `run-<engine>-<workload>.json` and `-requests.csv` of each run, perhaps `-steps.csv`.
    policy
        What schedules in the simulation.
    engine_for
        From the model named in a run's `.json` to an engine: any name or path that `optimizer.capacity.engine`
        takes. Without it the card is found by the model's name (`llama3.1-8b-bf16`: `llama3.1-8b@h200`).

    Returns
    -------
    list of RunComparison
        By name of the run.

    Raises
    ------
    InputError
        If the folder holds no runs, a file is wrong, or no engine is known for a model.

    Examples
    --------
    >>> for found in validate("../shared/h200"):  # doctest: +SKIP
    ...     print(found.run, found.error("wall"))
    """
    # Everything is read before anything is simulated: what is wrong need not wait.
    runs = [read_run(path) for path in find_runs(folder)]
    engines = [engine_of(run.limits, str(run.path), engine_for or {}) for run in runs]
    return [compare(run, *found, policy) for run, found in zip(runs, engines, strict=True)]


def compare(measured: MeasuredRun, card: str, engine: Engine, policy: str = "vllm-v1") -> RunComparison:
    """Replay one run on an engine of the catalogue, under the limits of the run."""
    limits, requests = measured.limits, measured.requests
    longest = int((requests.prompt_tokens + requests.output_tokens).max())
    own = engine.replace(
        kv_blocks=limits.kv_blocks - 1,  # vLLM keeps a null block
        block_tokens=limits.block_tokens,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        # Each running request takes a token of the budget, so no more run than that.
        max_num_seqs=min(limits.max_num_seqs, limits.max_num_batched_tokens),
        max_model_len=None if engine.max_model_len is None else max(engine.max_model_len, longest),
        prefix_caching=False,
    )
    simulation = simulate(Instance(measured.name, requests, own, origin=str(measured.path)), policy)
    return RunComparison(measured, simulation, card, took_part(card, limits), _figures(measured, simulation))


def _figures(measured: MeasuredRun, simulation: Simulation) -> dict[str, Figure]:
    metrics, sent = simulation.metrics, measured.requests.arrival_s
    steps, preemptions = measured.counted()
    found = {"wall": Figure(measured.wall_s, metrics.span_s)}
    for name, real, simulated in (
        ("ttft", measured.first_token_s - sent, metrics.ttft_s),
        ("e2e", measured.finish_s - sent, metrics.e2e_s),
    ):
        for kind, a, b in zip(("mean", "p50", "p99"), _three(real), _three(simulated), strict=True):
            found[f"{name}_{kind}"] = Figure(a, b)
    found["steps"] = Figure(steps, metrics.steps)
    found["preemptions"] = Figure(preemptions, int(metrics.preemptions.sum()))
    return found


def _three(values: Floats) -> tuple[float, float, float]:
    return float(values.mean()), float(np.median(values)), float(np.percentile(values, 99))

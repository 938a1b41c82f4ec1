"""What a run would be worth if every step took a little less, or more: figures as a band in place of a point."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimizer.capacity import EngineCard
from optimizer.problem import Instance
from optimizer.problem.metrics import TPOT_SLO_S, TTFT_SLO_S
from optimizer.report.accuracy import KnownError, known_error
from optimizer.report.table import figure

if TYPE_CHECKING:
    from optimizer.policies import Policy
    from optimizer.simulator import Simulation

FIGURES = (
    "makespan_s", "output_tokens_per_s", "requests_per_s", "goodput_per_s",
    "ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "tpot_mean_s", "tpot_p50_s", "tpot_p99_s",
    "e2e_mean_s", "e2e_p50_s", "e2e_p99_s", "preemptions",
)  # fmt: skip


def step_time_band(
    simulation: Simulation,
    *,
    policy: Policy | None = None,
    card: EngineCard | None = None,
    error: KnownError | None = None,
    ttft_slo_s: float = TTFT_SLO_S,
    tpot_slo_s: float = TPOT_SLO_S,
) -> dict[str, Any]:
    """Simulate a run again with step times as far off as they are known to be, in both directions.

    Every step time is multiplied by the same factor: the systematic part of the error, which no number of steps
    averages out. Requests, policy, seed and limits stay. Takes as long as two such simulations.

    Parameters
    ----------
    simulation
        What `simulate` gave.
    policy
        A fresh one, where the simulation was given a ready policy; else it is made again by its name.
    card
        The engine's card, where it is none of the catalogue.
    error
        In place of that of the card (`known_error`).
    ttft_slo_s, tpot_slo_s
        Levels as simulated.

    Returns
    -------
    dict
        JSON values: those of `KnownError.to_document`, and `figures`, with `low` and `high` of each of `FIGURES`
        over the run and both others; None where the error is not known, or the run has no such figure.

    Examples
    --------
    >>> from optimizer.problem import Engine, Requests, StepTime
    >>> from optimizer.simulator import simulate
    >>> engine = Engine(name="toy", kv_blocks=100, step_time=StepTime.affine(base_s=0.01))
    >>> requests = Requests.from_columns({"prompt_tokens": [100, 50], "output_tokens": [3, 5]})
    >>> run = simulate(Instance("two", requests, engine))
    >>> step_time_band(run, error=KnownError(0.9, 1.1, "a guess", {}))["figures"]["makespan_s"]
    {'low': 0.045, 'high': 0.055}
    """
    from optimizer.simulator import simulate

    s, instance = simulation, simulation.instance
    known = error or known_error(instance.engine, s.schedule, card)
    if known.low is None or known.high is None:
        return {**known.to_document(), "figures": None}
    found = [s.metrics.summary()]
    for factor in (known.low, known.high):
        engine = instance.engine.replace(step_time=instance.engine.step_time.scaled(factor))
        again = simulate(
            Instance(instance.name, instance.requests, engine, instance.objective, instance.source),
            s.policy if policy is None else copy.deepcopy(policy),
            seed=s.seed,
            options=s.options if policy is None else None,
            ttft_slo_s=ttft_slo_s,
            tpot_slo_s=tpot_slo_s,
        )
        found.append(again.metrics.summary())
    figures = {}
    for key in FIGURES:
        values = [value for run in found if (value := run[key]) is not None]
        figures[key] = {"low": min(values), "high": max(values)} if values else None
    return {**known.to_document(), "figures": figures}


def ranged(summary: Mapping[str, Any], key: str) -> str:
    """Show a figure of a summary with its band, where it has one: `40.4 (39.1 to 41.8)`.

    >>> ranged({"makespan_s": 40.42}, "makespan_s")
    '40.4'
    >>> band = {"figures": {"makespan_s": {"low": 39.1, "high": 41.82}}}
    >>> ranged({"makespan_s": 40.42, "band": band}, "makespan_s")
    '40.4 (39.1 to 41.8)'
    """
    shown = figure(summary[key])
    band = ((summary.get("band") or {}).get("figures") or {}).get(key)
    return shown if band is None else f"{shown} ({figure(band['low'])} to {figure(band['high'])})"


def about(band: Mapping[str, Any], extrapolates: bool = False) -> str:
    """Say in a few words what a band stands for, or why there is none.

    Parameters
    ----------
    band
        As `step_time_band` gives it.
    extrapolates
        Whether the run left the range that the card covers.

    Examples
    --------
    >>> about({"error": None, "origin": "the card states no error"})
    'none: how far step times are off is not known (the card states no error)'
    >>> about({"error": 0.03, "step_time_factors": [0.97, 1.03], "origin": "guess", "regimes": None, "figures": {}})
    'if every step took 3 % less to 3 % more (guess)'
    """
    if band["error"] is None:
        return f"none: how far step times are off is not known ({band['origin']})"
    low, high = band["step_time_factors"]
    said = (
        f"if every step took {100 * (1 - low):.2g} % less to {100 * (high - 1):.2g} % more ({band['origin']}"
    )
    regimes = band["regimes"] or {}
    if regimes and {of["of"] for of in regimes.values()} == {*regimes}:
        said += f": {', '.join(map(_of_regime, regimes, regimes.values()))})"
    else:  # from an entry for other steps, too
        said += "".join(f", {entry}" for entry in sorted({of["of"] for of in regimes.values()})) + ")"
    if extrapolates:
        said += "; beyond what was measured they may be off by more"
    return said if band["figures"] is not None else f"left out; {said} (--band simulates it)"


def _of_regime(name: str, of: Mapping[str, Any]) -> str:
    share = "< 1" if of["share"] < 0.01 else f"{100 * of['share']:.0f}"
    return f"{name} {100 * of['error']:.2g} % for {share} % of the time"

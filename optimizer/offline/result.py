"""The answer to an offline instance: a plan, what it was worth when it was executed, and how far from optimal it can be."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from optimizer.check import CheckReport
from optimizer.problem import Instance
from optimizer.problem.gap import gap
from optimizer.problem.plan import Plan
from optimizer.simulator import Simulation

Limit = Literal["optimal", "gap", "time", "interrupted", "exhausted"]
"""Why a solve ended: proved optimal, the wanted gap was reached, time was up, Ctrl-C, nothing was left to try."""


@dataclass(frozen=True, slots=True)
class Progress:
    """A better schedule, or a better bound, while a solve runs.

    Attributes
    ----------
    seconds
        Since the start.
    primal, dual
        Best value and best bound so far; None: none yet.
    source
        What found it.
    """

    seconds: float
    primal: float | None
    dual: float | None
    source: str

    @property
    def gap(self) -> float | None:
        """(primal - dual) / primal; None where unknown."""
        return gap(self.primal, self.dual)


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What `solve` found.

    Attributes
    ----------
    instance
        What was solved.
    objective
        One name, or two with a comma.
    primal
        Value of the first objective, as executed by the simulator; see `optimizer.offline.objective`.
    second
        Value of the second objective, if there is one.
    dual
        No schedule of the engine has a smaller value; None: nothing is known.
    plan
        What was executed; None where a policy was, under its own name.
    simulation
        The execution.
    check
        The independent checker's report on the schedule.
    found_by, bound_by
        What gave the schedule and the bound.
    certified, certificate
        The best bound that a certificate proves, and the certificate: `optimizer check CERTIFICATE --instance FILE` computes
        it again. Below `dual` where a solver proved more; None: there is none.
    baseline, baseline_policy
        Value of vLLM's first come first served, where it can serve the instance, else of the first policy that can.
    heuristic, heuristic_policy
        The best of all policies.
    limit
        Why the solve ended.
    progress
        Every better schedule and bound, in order.
    claimed
        What the model said its solution was worth, where a model gave it; the difference to `primal` is slippage.
    seconds, seed, time_limit_s
        Of the solve.
    """

    instance: Instance
    objective: str
    primal: float
    second: float | None
    dual: float | None
    plan: Plan | None
    simulation: Simulation
    check: CheckReport
    found_by: str
    bound_by: str | None
    certified: float | None
    certificate: dict[str, Any] | None
    baseline: float
    baseline_policy: str
    heuristic: float
    heuristic_policy: str
    limit: Limit
    progress: tuple[Progress, ...]
    claimed: float | None
    seconds: float
    seed: int
    time_limit_s: float

    @property
    def gap(self) -> float | None:
        """(primal - dual) / primal; None where no bound is known."""
        return gap(self.primal, self.dual)

    @property
    def slippage(self) -> float | None:
        """What the execution is worth less what the model claimed; None where no model gave the plan."""
        return None if self.claimed is None else self.primal - self.claimed

    def to_document(self) -> dict[str, Any]:
        """Give the JSON form, without the schedule itself."""
        return {
            "schema": "optimizer/result@1",
            "instance": self.instance.name,
            "instance_sha256": self.instance.sha256,
            "objective": self.objective,
            "primal": self.primal,
            "second": self.second,
            "dual": self.dual,
            "gap": self.gap,
            "baseline": self.baseline,
            "baseline_policy": self.baseline_policy,
            "heuristic": self.heuristic,
            "heuristic_policy": self.heuristic_policy,
            "checked": self.check.ok,
            "limit": self.limit,
            "found_by": self.found_by,
            "bound_by": self.bound_by,
            "claimed": self.claimed,
            "slippage": self.slippage,
            "preemptions": int(self.simulation.metrics.preemptions.sum()),
            "seconds": self.seconds,
            "time_limit_s": self.time_limit_s,
            "seed": self.seed,
            "metrics": self.simulation.metrics.summary(),
            "progress": [[p.seconds, p.primal, p.dual, p.source] for p in self.progress],
            "plan": None if self.plan is None else self.plan.to_document(),
            "certified": self.certified,
            "certificate": self.certificate,
            "versions": _versions(),
        }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("llm-schedule-optimizer", "ortools", "pulp", "highspy", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

"""One run of a comparison, and what came of it."""

from __future__ import annotations

import copy
import os
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from optimizer.capacity import EngineCard
from optimizer.comparison.policy_files import told_with_place
from optimizer.errors import OptimizerError
from optimizer.policies import Policy
from optimizer.problem import Instance


@dataclass(frozen=True)
class Task:
    """A policy to run with a seed.

    Attributes
    ----------
    name, policy
        The policy, and what it is called in the comparison.
    options
        Those of its options that were set, for the record.
    seed
        Of the run.
    instance, sha256
        Which of the comparison's instances, and its fingerprint.
    file_sha256
        Fingerprint of the user's file that the policy comes from; None: it is one of the package.
    check
        Whether `optimizer.check` judges the schedule.
    card
        The engine's card, where it is none of the catalogue.
    """

    name: str
    policy: Policy
    seed: int
    instance: int
    sha256: str
    options: Mapping[str, object] = field(default_factory=dict)
    file_sha256: str | None = None
    check: bool = False
    card: EngineCard | None = None


@dataclass(frozen=True)
class Outcome:
    """The summary of a run, or why there is none."""

    summary: dict[str, Any] | None
    reason: str = ""


def execute(task: Task, instance: Instance) -> Outcome:
    """Simulate; whatever the policy does wrong is the failure of this run alone."""
    from optimizer.check import check
    from optimizer.report.summary import summarize
    from optimizer.simulator import simulate

    try:
        # A policy may keep something of a run; each run starts with its own.
        simulation = simulate(instance, copy.deepcopy(task.policy), seed=task.seed)
        summary = summarize(simulation, options=task.options, sha256=task.sha256, card=task.card)
        summary["policy"] = task.name
        if task.file_sha256 is not None:
            summary["policy_file_sha256"] = task.file_sha256
        if task.check:
            report = check(simulation.schedule, instance)
            if not report.ok:
                return Outcome(None, f"its schedule breaks rules of the engine\n{report}")
            summary["check"] = str(report)
        return Outcome(summary)
    except OptimizerError as error:
        return Outcome(None, told_with_place(error))
    except MemoryError:
        return Outcome(None, "the memory was used up")
    except Exception as error:
        if os.environ.get("OPTIMIZER_DEBUG") == "1":
            traceback.print_exc()
        return Outcome(None, f"{type(error).__name__}: {error}")

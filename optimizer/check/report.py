"""What a check finds: rules, violations, and a report that stays short however much is broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from optimizer.problem import Requests, Schedule

SHOWN_PER_RULE = 10
"""Violations of one rule that a report spells out; of the others it gives the number."""


class Rule(StrEnum):
    """Everything a schedule has to keep; `definition` says each in one sentence."""

    definition: str

    def __new__(cls, name: str, definition: str) -> Rule:
        """Give the member its sentence."""
        rule = str.__new__(cls, name)
        rule._value_ = name
        rule.definition = definition
        return rule

    SHAPE = (
        "shape",
        "The columns of a table are equally long, and the granularity of KV is the engine's or 1.",
    )
    INDEX = "index", "Every row names runs that exist, the first not after the last."
    REQUEST = "request", "Every row names a request of the instance."
    RANGE = "range", "No number is negative or absurd, and no row is about zero tokens."
    EMPTY_RUN = "empty-run", "Every run has a step, and somebody in it who prefills or decodes."
    RUN_ORDER = "run-order", "Runs follow one another and never overlap."
    TIMES = (
        "times",
        "A run's first step and its end follow from the step-time model, each step longer by the same amount.",
    )
    ARRIVAL = "arrival", "Nothing is computed or reserved for a request before it arrived."
    COUNTS = "counts", "Decodes, their context and the prompt tokens of a run are what the tables say."
    BUDGET = "budget", "Prompt tokens and decodes of a step stay within the engine's token budget."
    SEATS = "seats", "No more requests hold KV at once than the engine has seats."
    CAPACITY = "capacity", "The KV held in a step, or reserved, fits into the cache."
    CONTEXT = "context", "A chunk starts where the computed tokens of its request end."
    PREFILL = (
        "prefill",
        "A prefill computes the prompt and what was generated before a preemption, and no more.",
    )
    PRECEDENCE = "precedence", "A request decodes only after its whole prompt, and prefills only before."
    ONCE = "once", "A request does one thing in a step, once."
    PREEMPTION = "preemption", "Only a request that holds KV is preempted, and it computes nothing meanwhile."
    LOST = "lost", "Every request is served to its last output token."
    OVERRUN = "overrun", "No request computes or generates anything after its last output token."
    FIRST_TOKEN = "first-token", "`first_token_s` is the end of the step that completed the prompt first."
    FINISH = "finish", "`finish_s` is the end of the step that gave the last output token."
    RESERVATION = "reservation", "Under reservations a request computes only within the one that it holds."
    CONTIGUITY = "contiguity", "Contiguous reservations lie inside the cache and never overlap."
    PREFIX_HIT = "prefix-hit", "A prefix hit is made at admission, of whole blocks computed before."
    PREFIX_KEPT = (
        "prefix-kept",
        "Blocks kept for a later prefix hit fit into the cache beside those in use.",
    )


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule.

    Attributes
    ----------
    rule
        Which.
    run, step
        Where: the run, and the number of the step counted over the whole schedule, both from 0; None where
        the violation is not of one run.
    request
        Name of the request, or None.
    message
        What is, and what should be.
    """

    rule: Rule
    run: int | None
    step: int | None
    request: str | None
    message: str

    def __str__(self) -> str:
        place = [self.rule.value]
        if self.run is not None:
            place.append(f"run {self.run}")
        if self.step is not None:
            place.append(f"step {self.step}")
        if self.request is not None:
            place.append(f"request {self.request}")
        return f"{', '.join(place)}: {self.message}"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found; true where it found nothing wrong.

    Attributes
    ----------
    violations
        At most `SHOWN_PER_RULE` of each rule, in the order of `Rule`.
    counts
        By broken rule: how many violations there are in all.
    notes
        What could not be judged, and why.
    requests, runs, steps
        Size of what was checked.
    """

    violations: tuple[Violation, ...]
    counts: dict[Rule, int]
    notes: tuple[str, ...]
    requests: int
    runs: int
    steps: int

    @property
    def ok(self) -> bool:
        """Whether no rule is broken."""
        return not self.counts

    @property
    def rules(self) -> frozenset[Rule]:
        """The broken rules."""
        return frozenset(self.counts)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        size = f"{self.requests:,} requests, {self.runs:,} runs, {self.steps:,} steps"
        if self.ok:
            lines = [f"yes: {size} keep all {len(Rule)} rules"]
        else:
            total = sum(self.counts.values())
            lines = [f"no: {size} break {', '.join(self.counts)} ({total:,} violations)"]
        shown = Counter(v.rule for v in self.violations)
        for place, violation in enumerate(self.violations):
            rule = violation.rule
            lines.append(f"  {violation}")
            last = place + 1 == len(self.violations) or self.violations[place + 1].rule != rule
            if last and self.counts[rule] > shown[rule]:
                lines.append(f"  {rule}: {self.counts[rule] - shown[rule]:,} more")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


@dataclass(slots=True)
class Findings:
    """Collects violations; cheap for those that will not be shown."""

    schedule: Schedule
    who: Requests
    counts: Counter[Rule] = field(default_factory=Counter)
    shown: list[Violation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _steps_before: list[int] = field(default_factory=list)

    def add(
        self,
        rule: Rule,
        message: str,
        *,
        run: int | None = None,
        request: int | None = None,
        last_step: bool = False,
    ) -> None:
        """Note one violation, at the first or the last step of a run."""
        self.counts[rule] += 1
        if self.counts[rule] > SHOWN_PER_RULE:
            return
        step = None
        if run is not None and 0 <= run < len(self.schedule.steps):
            if not self._steps_before:
                self._steps_before = [0, *np.cumsum(np.maximum(self.schedule.steps, 0)).tolist()]
            step = self._steps_before[run + 1] - 1 if last_step else self._steps_before[run]
        name = None if request is None else self._name(request)
        self.shown.append(Violation(rule, run, step, name, message))

    def add_where(self, rule: Rule, broken: Any, tell: Callable[[int], dict[str, Any]]) -> None:
        """Note a violation for every True of a mask; `tell` turns an index into the arguments of `add`."""
        at = np.flatnonzero(broken)
        room = max(0, SHOWN_PER_RULE - self.counts[rule])
        for index in at[:room].tolist():
            self.add(rule, **tell(index))
        if len(at) > room:
            self.counts[rule] += len(at) - room

    def _name(self, request: int) -> str:
        return self.who.name(request) if 0 <= request < len(self.who) else f"number {request}"

    def report(self) -> CheckReport:
        """Close the list."""
        rank = {rule: place for place, rule in enumerate(Rule)}
        return CheckReport(
            tuple(sorted(self.shown, key=lambda v: rank[v.rule])),
            {rule: self.counts[rule] for rule in Rule if self.counts[rule]},
            tuple(self.notes),
            len(self.who),
            len(self.schedule.steps),
            int(np.maximum(self.schedule.steps, 0).sum()),
        )

"""The bounds of an offline solve, each with the certificate that proves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from optimizer.bounds.lines import find_lines
from optimizer.certificates import Verified, verify, work_certificate
from optimizer.problem import Instance
from optimizer.problem.instance import Objective


@dataclass(frozen=True, slots=True)
class Bound:
    """A proved lower bound.

    Attributes
    ----------
    value
        In the units of the objective, rounded down.
    by
        What proves it.
    certificate
        The document that `optimizer check` verifies; None where a solver's word is all there is.
    """

    value: float
    by: str
    certificate: dict[str, Any] | None


def work_bound(instance: Instance, objective: Objective) -> Bound | None:
    """Bound an objective by the work that has to be done (`optimizer.certificates.work`); None for goodput."""
    if objective == "goodput":
        return None
    document = work_certificate(instance, objective, find_lines(instance, objective))
    return bound_of(verify(document, instance), document)


def bound_of(verified: Verified, document: dict[str, Any]) -> Bound:
    """Make a verified certificate a bound."""
    return Bound(verified.rounded_down, verified.kind, document)

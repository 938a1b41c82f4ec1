"""What a running solver tells: the events of a task, whatever the solver is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True, slots=True)
class Found:
    """A solution: a number per variable, and what the solver says of it."""

    values: Any
    value: float
    bound: float | None


@dataclass(frozen=True, slots=True)
class Raised:
    """A better lower bound."""

    bound: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event: what the solver concludes."""

    outcome: Literal["optimal", "infeasible", "limit", "failed"]
    bound: float | None
    message: str


Event = Found | Raised | Ended
Emit = Callable[[Event], None]


class Task(Protocol):
    """A model and how to solve it; it can be pickled."""

    def run(self, emit: Emit) -> None:
        """Solve, and tell every event; the last one is `Ended`."""

    def stop(self) -> None:
        """Ask for the end; called from another thread, maybe more than once."""


class Nonsense(Exception):
    """A solver's claim that our own arithmetic refutes."""

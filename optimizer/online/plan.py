"""What the solver hands back, and how it is judged before anybody believes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, cast, get_args, runtime_checkable

from optimizer.errors import InputError
from optimizer.online.knobs import Knobs, Mode
from optimizer.online.stats import SolverStats

MOST_PLANNED = 128
"""Waiting requests in a window: those next in line."""


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """A plan for the requests of a window.

    Attributes
    ----------
    order
        Waiting requests by serial, the first foremost.
    start_s
        By request of `order`: when it is planned to start.
    knobs
        Price of prompts, chunk budget, mixing.
    made_s
        Moment of the state that was planned for.
    value, heuristic_value
        What the plan, and what the heuristic alone, was worth in the solver's own rollouts (smaller is better).
    seconds
        That the solve took.
    by
        What found it.
    """

    order: tuple[int, ...]
    start_s: tuple[float, ...]
    knobs: Knobs
    made_s: float
    value: float
    heuristic_value: float
    seconds: float
    by: str

    def to_document(self) -> dict[str, Any]:
        """Give the JSON form."""
        return {
            "order": list(self.order),
            "start_s": list(self.start_s),
            "price": self.knobs.price,
            "chunk_tokens": self.knobs.chunk_tokens,
            "mode": self.knobs.mode,
            "made_s": self.made_s,
            "value": self.value,
            "heuristic_value": self.heuristic_value,
            "seconds": self.seconds,
            "by": self.by,
        }

    @classmethod
    def from_document(cls, document: Any) -> WindowPlan:
        """Judge what a solver said.

        Raises
        ------
        InputError
            If it is no plan: a field is missing, a number is none, a request is named twice.

        Examples
        --------
        >>> WindowPlan.from_document({"order": [1, 1]})
        Traceback (most recent call last):
        optimizer.errors.InputError: this is no plan: request 1 is named twice
        """
        if not isinstance(document, dict):
            raise InputError("this is no plan: expected an object")
        order = document.get("order")
        if not isinstance(order, list) or not all(type(serial) is int and serial >= 0 for serial in order):
            raise InputError("this is no plan: order is no list of requests")
        if len(set(order)) != len(order):
            twice = next(serial for serial in order if order.count(serial) > 1)
            raise InputError(f"this is no plan: request {twice} is named twice")
        starts = document.get("start_s")
        if not isinstance(starts, list) or len(starts) != len(order):
            raise InputError("this is no plan: start_s is not one moment per request")
        mode = document.get("mode")
        chunk = document.get("chunk_tokens")
        if chunk is not None and not (type(chunk) is int and chunk > 0):
            raise InputError(f"this is no plan: chunk_tokens is {chunk!r}")
        if mode not in get_args(Mode):
            raise InputError(f"this is no plan: mode is {mode!r}")
        names = ("price", "made_s", "value", "heuristic_value", "seconds")
        numbers = {name: _number(document.get(name), name) for name in names}
        knobs = Knobs(_at_least_0(numbers.pop("price")), chunk, cast("Mode", mode))
        return cls(
            tuple(order),
            tuple(_number(start, "start_s") for start in starts),
            knobs,
            numbers["made_s"],
            numbers["value"],
            numbers["heuristic_value"],
            numbers["seconds"],
            str(document.get("by", "")),
        )


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"this is no plan: {name} is {value!r}")
    return float(value)


def _at_least_0(price: float) -> float:
    if price < 0:
        raise InputError(f"this is no plan: price is {price!r}")
    return price


Snapshot = dict[str, Any]
"""What the solver is shown of a moment, as JSON: see `optimizer.online.snapshot`."""


@runtime_checkable
class Planner(Protocol):
    """Something that makes plans beside the loop; no call may wait."""

    def wants(self, now_s: float) -> bool:
        """Say whether it would take a snapshot now."""

    def post(self, snapshot: Snapshot, now_s: float) -> None:
        """Hand a snapshot over."""

    def poll(self, now_s: float) -> WindowPlan | None:
        """Give a plan that is ready, once."""

    def stats(self) -> SolverStats:
        """Say how it fares."""

    def close(self) -> None:
        """End whatever it runs."""

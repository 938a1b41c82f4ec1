"""What a serving loop hands to the horizon and gets from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any, Literal

from optimizer.errors import InputError
from optimizer.problem.columns import MOST_TOKENS

Status = Literal["admitted", "queued", "rejected"]
Reason = Literal["", "closed", "duplicate", "too-long", "overload", "slo"]
_LEAST_WEIGHT = 1e-6
"""Work is divided by it, and a place in the line must stay a number."""
Source = Literal["plan", "stale-plan", "heuristic", "fcfs", "idle"]
"""What composed a step: a fresh plan, a plan past its time, the heuristic, first come first served, or nothing to do."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, as far as it is known when it arrives.

    Attributes
    ----------
    id
        Unique among those that are not finished.
    prompt_tokens
        At least 1.
    max_output_tokens
        Cap that the client asked for; None: what the engine has room for.
    predicted_tokens
        A prediction of its output tokens; None: there is none.
    log_sigma
        Spread of the logarithm of the true length about the prediction; None: not known.
    weight
        Importance, from 1e-6 to 1e6.
    ttft_slo_s, tpot_slo_s
        Service levels of its own, in seconds; None: the horizon's.
    tenant
        Who sent it; lengths are learned and shares are held by tenant.
    cached_tokens
        Tokens at the start of its prompt that the engine's prefix cache is believed to hold: they need not be computed, but
        take blocks all the same. What really was cached is reported with the step.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> Request("a", prompt_tokens=100, predicted_tokens=250.0).tenant
    ''
    >>> Request("a", prompt_tokens=0)
    Traceback (most recent call last):
    optimizer.errors.InputError: request a, field prompt_tokens: 0; expected a whole number from 1 to 100000000
    """

    id: str
    prompt_tokens: int
    max_output_tokens: int | None = None
    predicted_tokens: float | None = None
    log_sigma: float | None = None
    weight: float = 1.0
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    tenant: str = ""
    cached_tokens: int = 0

    def __post_init__(self) -> None:
        for field in ("id", "tenant"):
            if not isinstance(getattr(self, field), str):
                self._refuse(field, getattr(self, field), "a string")
        if type(self.cached_tokens) is not int or self.cached_tokens < 0:
            self._refuse("cached_tokens", self.cached_tokens, "a whole number >= 0")
        for field, tokens in (
            ("prompt_tokens", self.prompt_tokens),
            ("max_output_tokens", self.max_output_tokens),
        ):
            if tokens is None and field != "prompt_tokens":
                continue
            if type(tokens) is not int or not 1 <= tokens <= MOST_TOKENS:
                self._refuse(field, tokens, f"a whole number from 1 to {MOST_TOKENS}")
        for field in ("predicted_tokens", "log_sigma", "ttft_slo_s", "tpot_slo_s"):
            number = getattr(self, field)
            if number is not None and not (real(number) and number >= 0):
                self._refuse(field, number, "a finite number >= 0, or None")
        if not (real(self.weight) and _LEAST_WEIGHT <= self.weight <= 1 / _LEAST_WEIGHT):
            self._refuse("weight", self.weight, f"a number from {_LEAST_WEIGHT:g} to {1 / _LEAST_WEIGHT:g}")

    def _refuse(self, field: str, given: object, expected: str) -> None:
        raise InputError(f"{given!r}; expected {expected}", file=f"request {self.id}", field=field)


def real(number: object) -> bool:
    """Say whether something is a finite number."""
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


def checked(step: object, finished: object, tokens: object) -> tuple[tuple[str, ...], dict[str, int]]:
    """Give who finished and what was computed, as a report says.

    Raises
    ------
    InputError
        If something is of another kind than it should be.

    Examples
    --------
    >>> checked(Step(0, 0.0), "r12", None)
    Traceback (most recent call last):
    optimizer.errors.InputError: field finished: 'r12'; expected the ids of requests, such as ['a', 'b']
    """
    if not isinstance(step, Step):
        raise InputError(f"{step!r}; expected a Step, as next_step gave it", field="step")
    if isinstance(finished, str) or not isinstance(finished, Iterable):
        raise InputError(f"{finished!r}; expected the ids of requests, such as ['a', 'b']", field="finished")
    names = tuple(finished)
    computed: dict[str, int] = {}
    for name, count in _pairs(tokens):
        try:
            computed[name] = index(count)
        except TypeError:
            raise InputError(
                f"{count!r} of request {name}; expected a whole number of tokens", field="tokens"
            ) from None
    for name in (*names, *computed):
        if not isinstance(name, str):
            raise InputError(f"{name!r}; expected the id of a request, a string", field="finished or tokens")
    return names, computed


def _pairs(tokens: object) -> Iterable[tuple[Any, Any]]:
    if tokens is None:
        return ()
    if not isinstance(tokens, Mapping):
        raise InputError(f"{tokens!r}; expected tokens by request, such as {{'a': 3}}", field="tokens")
    return tokens.items()


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a request that was submitted.

    Attributes
    ----------
    status
        `admitted`: nothing stands between it and the next step (a more urgent arrival still may). `queued`: it waits.
        `rejected`: it is not taken in, and nothing is remembered of it.
    reason
        Why it was rejected: `closed`; `duplicate` (the id is in use); `too-long` (it can never fit); `overload`
        (`max_waiting` requests wait); `slo` (a level of its own cannot be met, even on an idle engine).
    message
        The reason as a sentence, with numbers.
    max_output_tokens
        The cap that holds: what the client asked for, cut to what the engine has room for. A request that reaches it is
        finished.
    """

    status: Status
    reason: Reason = ""
    message: str = ""
    max_output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """What the engine computes next; `preempt` comes first, then prompts and decodes share one forward pass.

    Attributes
    ----------
    number
        Counts the steps that are not empty.
    now_s
        When it was composed.
    prefill
        (request, prompt tokens to compute): for a request that was preempted, tokens it had generated are among them, and
        those that are believed to be cached (`Request.cached_tokens`) are not. Who computes its last prompt token samples
        an output token.
    decode
        Requests that decode one token each.
    preempt
        Requests that lose their KV and wait again.
    source
        What composed it.
    """

    number: int
    now_s: float
    prefill: tuple[tuple[str, int], ...] = ()
    decode: tuple[str, ...] = ()
    preempt: tuple[str, ...] = ()
    source: Source = "idle"

    def __bool__(self) -> bool:
        """Say whether the engine has anything to do, if only to drop the KV of somebody."""
        return bool(self.prefill or self.decode or self.preempt)

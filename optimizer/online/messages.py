"""What a serving loop hands to the horizon and gets from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from optimizer.errors import InputError
from optimizer.problem.columns import MOST_TOKENS

Status = Literal["admitted", "queued", "rejected"]
Reason = Literal["", "closed", "duplicate", "too-long", "overload", "slo"]
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
        Importance, above 0.
    ttft_slo_s, tpot_slo_s
        Service levels of its own, in seconds; None: the horizon's.
    tenant
        Who sent it; lengths are learned and shares are held by tenant.

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

    def __post_init__(self) -> None:
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
            if number is not None and not (_real(number) and number >= 0):
                self._refuse(field, number, "a finite number >= 0, or None")
        if not (_real(self.weight) and self.weight > 0):
            self._refuse("weight", self.weight, "a finite number > 0")

    def _refuse(self, field: str, given: object, expected: str) -> None:
        raise InputError(f"{given!r}; expected {expected}", file=f"request {self.id}", field=field)


def _real(number: object) -> bool:
    return isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)


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
        Counts the steps that compute something.
    now_s
        When it was composed.
    prefill
        (request, prompt tokens to compute): for a request that was preempted, tokens it had generated are among them.
        Who computes its last prompt token samples an output token.
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
        """Say whether the engine has anything to do."""
        return bool(self.prefill or self.decode)

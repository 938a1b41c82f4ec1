"""Plans: what a solver intends, in two forms: an order of the requests, or every step spelt out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from optimizer.errors import InputError
from optimizer.problem.engine import Frozen
from optimizer.problem.files import written_whole
from optimizer.problem.instance import from_pydantic, read_json
from optimizer.problem.schedule import Schedule

SCHEMA = "optimizer/plan@1"

Row = Annotated[int, Field(strict=True, ge=0)]
"""A request, by its row in the instance."""

Tokens = Annotated[int, Field(strict=True, ge=1)]
Moment = Annotated[float, Field(ge=0)]


class _Document(Frozen):
    """What both forms share: how they are written."""

    def to_document(self) -> dict[str, Any]:
        """Give the JSON form; what is left at its default is left out."""
        return {"schema": SCHEMA, **self.model_dump(mode="json", exclude_defaults=True), **self._form()}

    def _form(self) -> dict[str, str]:
        return {"form": self.form}  # type: ignore[attr-defined]

    def write(self, path: str | Path) -> None:
        """Write the JSON form, whole or not at all."""
        with written_whole(path) as out:
            out.write(json.dumps(self.to_document(), separators=(",", ":")) + "\n")


class OrderPlan(_Document):
    """Who goes first, and from when on; each step follows from that and from what fits.

    Every running request decodes in every step. Prompts that have begun are computed next, then requests are
    admitted in the planned order; the first that is due and does not fit ends the scan. Where KV blocks run
    out, the running request that comes last in the order is thrown out and computed anew later.

    Attributes
    ----------
    order
        Requests by priority, the first foremost; those not named come behind, in order of arrival.
    earliest_s
        By request: not before this moment; None: from its arrival on.
    start_round
        By request: the round in which its prompt is begun. Round 0 is the first step; every step is one round,
        and so is every `round_s` seconds in which nothing runs. As a request's KV grows by rounds, not by seconds,
        starts planned in rounds keep within memory however long the steps really take.
    round_s
        Length of a round in which nothing runs. None: the engine never waits for a planned round; if nothing
        runs, the next planned round begins as soon as its request is there.
    max_seqs
        Most requests that run at once; None: the engine's seats.
    prefill_tokens
        Most prompt tokens per step; None: what decodes leave of the token budget.
    step_tokens
        Most tokens per step, decodes and prompts together; None: the engine's token budget.
    max_decodes
        Most requests that decode in a step: those foremost in the order; the others wait with their KV kept. None: all.
    prefill_batch
        Prompts are begun only when so many tokens of them can be admitted at once, or all there are, or when
        fewer than `max_decodes` requests (None: nobody) could decode otherwise. Large prompts steps then alternate
        with steps that only decode.
    mixing
        `mixed`: prompts and decodes share steps. `exclusive`: a step that computes prompts computes no decodes,
        and as long as somebody can be admitted it does.
    memory
        `plain`: a request is admitted when blocks for its prompt are free. `peak-safe`: when, in addition, the
        future peak of KV stays within the cache, as far as lengths are known.

    Raises
    ------
    ValueError
        If a request is named twice, or starts are given both in seconds and in rounds.

    Examples
    --------
    >>> plan = OrderPlan(order=(1, 0), start_round=(4, 0))
    >>> plan.to_document()
    {'schema': 'optimizer/plan@1', 'order': [1, 0], 'start_round': [4, 0], 'form': 'order'}
    """

    form: Literal["order"] = "order"
    order: tuple[Row, ...] = ()
    earliest_s: tuple[Moment | None, ...] | None = None
    start_round: tuple[Row, ...] | None = None
    round_s: Annotated[float, Field(gt=0)] | None = None
    max_seqs: Tokens | None = None
    prefill_tokens: Tokens | None = None
    step_tokens: Tokens | None = None
    max_decodes: Tokens | None = None
    prefill_batch: Tokens | None = None
    mixing: Literal["mixed", "exclusive"] = "mixed"
    memory: Literal["plain", "peak-safe"] = "plain"

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if len(set(self.order)) != len(self.order):
            twice = next(row for row in self.order if self.order.count(row) > 1)
            raise ValueError(f"request {twice} is named twice in the order; name each once")
        if self.earliest_s is not None and self.start_round is not None:
            raise ValueError("earliest_s and start_round both say when requests start; give one of them")
        if self.round_s is not None and self.start_round is None:
            raise ValueError("round_s is the length of a round of start_round; give start_round as well")
        return self

    @classmethod
    def of_starts(cls, start_round: Sequence[int], *, round_s: float | None = None) -> Self:
        """Plan the starting rounds that a solver of `Ramps` found: earliest first, ties by request.

        Parameters
        ----------
        start_round
            By request, from 0 on.
        round_s
            As the attribute: give the engine's equal step time to have every start exactly in its round.
        """
        starts = tuple(int(round_) for round_ in start_round)
        order = tuple(sorted(range(len(starts)), key=lambda row: (starts[row], row)))
        return cls(order=order, start_round=starts, round_s=round_s)


class PlanStep(Frozen):
    """One step of a plan.

    Attributes
    ----------
    prefill
        (request, prompt tokens to compute); a request that is not running is admitted.
    decode
        Who decodes a token; running requests that could and are not named wait with their KV kept.
    preempt
        Who is thrown out before the step.
    not_before_s
        The step starts at this moment at the earliest; None: as soon as the requests that it admits are there.
    """

    prefill: tuple[tuple[Row, Tokens], ...] = ()
    decode: tuple[Row, ...] = ()
    preempt: tuple[Row, ...] = ()
    not_before_s: Moment | None = None

    @model_validator(mode="after")
    def _computes_something(self) -> Self:
        if not self.prefill and not self.decode:
            raise ValueError("a step computes nothing; leave it out (not_before_s lets a step wait)")
        busy = [row for row, _ in self.prefill] + list(self.decode)
        if len(set(busy)) != len(busy):
            raise ValueError("a step names a request twice; each computes a chunk or decodes, once")
        return self


class StepsPlan(_Document):
    """Every step spelt out; what is left to do after the last one follows vLLM's rule, in order of arrival.

    Attributes
    ----------
    steps
        In order.

    Examples
    --------
    >>> plan = StepsPlan(steps=(PlanStep(prefill=((0, 10),)), PlanStep(decode=(0,))))
    >>> plan.to_document()["steps"]
    [{'prefill': [[0, 10]]}, {'decode': [0]}]
    """

    form: Literal["steps"] = "steps"
    steps: tuple[PlanStep, ...]

    @classmethod
    def of_schedule(cls, schedule: Schedule) -> Self:
        """Plan what a schedule did, step by step; meant for small ones, and for those without prefix hits.

        A step that waited starts when it did then, to within the precision of a float of seconds.
        """
        first = np.cumsum(schedule.steps) - schedule.steps
        waited = schedule.start_s > np.concatenate(([0.0], schedule.end_s))[:-1]
        start = dict(zip(first[waited].tolist(), schedule.start_s[waited].tolist(), strict=True))
        return cls(
            steps=tuple(
                PlanStep(
                    prefill=step.prefill,
                    decode=step.decode,
                    preempt=step.preempted,
                    not_before_s=start.get(number),
                )
                for number, step in enumerate(schedule.iterate())
            )
        )


Plan = OrderPlan | StepsPlan
"""What a solver or an online policy intends; `optimizer.policies.plan` executes it."""

_FORMS: dict[str, type[OrderPlan] | type[StepsPlan]] = {"order": OrderPlan, "steps": StepsPlan}


def plan_from_document(document: Any, *, file: str | None = None) -> Plan:
    """Check a JSON form and make it a plan.

    Raises
    ------
    InputError
        On anything that is not a plan: names the file and the field.

    Examples
    --------
    >>> plan_from_document({"schema": "optimizer/plan@1", "form": "order", "order": [2, 0]}).order
    (2, 0)
    """
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f'this is no plan: expected an object with "schema": "{SCHEMA}"', file=file)
    form = _FORMS.get(str(document.get("form")))
    if form is None:
        raise InputError(f"{document.get('form')!r}; expected {' or '.join(_FORMS)}", file=file, field="form")
    try:
        return form.model_validate({k: v for k, v in document.items() if k != "schema"})
    except ValidationError as error:
        raise from_pydantic(error, file) from None


def read_plan(path: str | Path) -> Plan:
    """Read the JSON form of a plan.

    Raises
    ------
    InputError
        On anything that is not a plan: names the file and the field.
    """
    return plan_from_document(read_json(path), file=str(path))

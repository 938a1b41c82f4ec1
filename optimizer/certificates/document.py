"""Certificates as documents, and the one door to their verification."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field, ValidationError

from optimizer.certificates.cliques import Clique
from optimizer.certificates.prices import Priced, Prices, price_bound_s
from optimizer.certificates.step_lines import FIELDS, Line, proves, survives_preemption
from optimizer.certificates.work import work_bound
from optimizer.errors import InputError
from optimizer.problem import Instance
from optimizer.problem.engine import Frozen
from optimizer.problem.instance import Objective, from_pydantic, read_json

SCHEMA = "optimizer/certificate@1"


@dataclass(frozen=True, slots=True)
class Verified:
    """What a certificate proves.

    Attributes
    ----------
    objective
        Of which it is a lower bound.
    bound
        The bound itself, exact.
    kind
        How it is proved.
    """

    objective: Objective
    bound: Fraction
    kind: str

    @property
    def rounded_down(self) -> float:
        """The largest float that is not above the bound.

        >>> Verified("makespan", Fraction(1, 3), "work").rounded_down <= Fraction(1, 3)
        True
        """
        near = float(self.bound)
        return near if Fraction(near) <= self.bound else math.nextafter(near, -math.inf)


class _Line(Frozen):
    rates: tuple[int, ...]
    weights: tuple[tuple[int, ...], ...]


class _Work(Frozen):
    schema_: Literal["optimizer/certificate@1"] = Field(alias="schema")
    kind: Literal["work"]
    instance_sha256: str
    objective: Objective
    fields: tuple[str, ...]
    lines: tuple[_Line, ...] = Field(min_length=1)


class _Row(Frozen):
    table: tuple[int, ...] | None = None
    prices: tuple[int, ...]


class _Clique(Frozen):
    requests: tuple[int, ...] = Field(min_length=1)
    first: tuple[int, ...]
    last: tuple[int, ...]
    price: int


class _Prices(Frozen):
    schema_: Literal["optimizer/certificate@1"] = Field(alias="schema")
    kind: Literal["prices"]
    instance_sha256: str
    objective: Literal["mean-latency", "weighted-latency"]
    denominator: int = Field(ge=1)
    rows: tuple[_Row, ...] = Field(min_length=1)
    cliques: tuple[_Clique, ...] = ()


def work_certificate(instance: Instance, objective: Objective, lines: Sequence[Line]) -> dict[str, Any]:
    """Write lines below the step time down as a certificate.

    Rates are in femtoseconds per unit, in the order of `fields`; weights are whole, for each regime in turn.
    """
    return {
        "schema": SCHEMA,
        "kind": "work",
        "instance_sha256": instance.sha256,
        "objective": objective,
        "fields": list(FIELDS),
        "lines": [{"rates": list(line.rates), "weights": [list(w) for w in line.weights]} for line in lines],
    }


def price_certificate(instance: Instance, objective: Objective, prices: Prices) -> dict[str, Any]:
    """Write prices on rounds down as a certificate."""
    return {
        "schema": SCHEMA,
        "kind": "prices",
        "instance_sha256": instance.sha256,
        "objective": objective,
        "denominator": int(prices.denominator),
        "rows": [
            {
                "table": None if row.table is None else np.asarray(row.table).tolist(),
                "prices": np.asarray(row.prices).tolist(),
            }
            for row in prices.rows
        ],
        "cliques": [
            {
                "requests": clique.requests.tolist(),
                "first": clique.first.tolist(),
                "last": clique.last.tolist(),
                "price": clique.price,
            }
            for clique in prices.cliques
        ],
    }


def verify(document: Any, instance: Instance, *, file: str | None = None) -> Verified:
    """Compute what a certificate proves about an instance: exactly, and from nothing but the two.

    Parameters
    ----------
    document
        As read from JSON.
    instance
        The one it was made for.
    file
        For messages.

    Raises
    ------
    InputError
        If it is no certificate, belongs to another instance, or something in it does not hold.

    Examples
    --------
    >>> from optimizer.bounds.lines import find_lines
    >>> from optimizer.problem import Engine, Requests, StepTime
    >>> engine = Engine(name="toy", kv_blocks=9, step_time=StepTime.affine(base_s=1.0))
    >>> instance = Instance("toy", Requests.from_columns({"prompt_tokens": [4], "output_tokens": [5]}), engine)
    >>> print(verify(work_certificate(instance, "makespan", find_lines(instance, "makespan")), instance).bound)
    5
    """
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(f'this is no certificate: expected an object with "schema": "{SCHEMA}"', file=file)
    check_of = _KINDS.get(str(document.get("kind")))
    if check_of is None:
        raise InputError(f"{document.get('kind')!r}; expected {' or '.join(_KINDS)}", file=file, field="kind")
    if document.get("instance_sha256") != instance.sha256:
        raise InputError(
            f"is a certificate for another instance than {instance.name}: their fingerprints differ; give the instance "
            "that it was made with",
            file=file,
            field="instance_sha256",
        )
    if document.get("objective") not in get_args(Objective):
        raise InputError(f"{document.get('objective')!r} is no objective", file=file, field="objective")
    try:
        return check_of(document, instance, file)
    except ValidationError as error:
        raise from_pydantic(error, file) from None


def read_certificate(path: str | Path) -> dict[str, Any]:
    """Read the JSON form; `verify` judges it."""
    document: dict[str, Any] = read_json(path)
    return document


def _verify_work(document: dict[str, Any], instance: Instance, file: str | None) -> Verified:
    given = _Work.model_validate(document)
    if given.fields != FIELDS:
        raise InputError(f"expected {', '.join(FIELDS)}", file=file, field="fields")
    lines = []
    for number, one in enumerate(given.lines):
        line = Line(one.rates, one.weights)
        wrong = (
            "it has another number of rates"
            if len(line.rates) != len(FIELDS)
            else proves(line, instance.engine)
        )
        if wrong is None and not survives_preemption(line, instance):
            wrong = "throwing a request out would save time by it"
        if wrong is not None:
            raise InputError(f"line {number} proves nothing: {wrong}", file=file, field="lines")
        lines.append(line)
    return Verified(given.objective, work_bound(instance, lines, given.objective), "work")


def _verify_prices(document: dict[str, Any], instance: Instance, file: str | None) -> Verified:
    given = _Prices.model_validate(document)
    rows = [
        Priced(None if row.table is None else np.array(row.table, np.int64), np.array(row.prices, np.int64))
        for row in given.rows
    ]
    try:
        weighted = given.objective == "weighted-latency"
        cliques = [
            Clique(
                np.array(c.requests, np.int64),
                np.array(c.first, np.int64),
                np.array(c.last, np.int64),
                c.price,
            )
            for c in given.cliques
        ]
        bound = price_bound_s(instance, Prices(rows, given.denominator, cliques), weighted=weighted)
    except (ValueError, OverflowError) as error:
        raise InputError(f"proves nothing: {error}", file=file) from None
    return Verified(given.objective, bound, "prices")


_KINDS = {"work": _verify_work, "prices": _verify_prices}

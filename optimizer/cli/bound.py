"""`optimizer bound`: below what no schedule of an instance can be, at once, and what that consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli.command import command
from optimizer.cli.options import EngineOptions, InstanceOptions, Objectives, Seed, TimeLimit
from optimizer.cli.output import check_outputs, say, show, write_json
from optimizer.cli.solve_output import introduce, shown
from optimizer.errors import InputError
from optimizer.units import TICKS_PER_SECOND

if TYPE_CHECKING:
    from fractions import Fraction

    from optimizer.certificates.step_lines import Line
    from optimizer.offline.bounds import Bound
    from optimizer.problem import Instance
    from optimizer.problem.instance import Objective

_PANEL = "Output"
_SCHEMA = "optimizer/bound@1"
_PARTS = {
    "base_s": "a step",
    "per_prefill_token_s": "a prompt token",
    "per_prefill_attention_s": "a query-key pair of prompts",
    "per_prefill_seq_s": "a prompt in a step",
    "per_prefill_context_s": "a token of context of a prompt",
    "per_decode_seq_s": "a decode",
    "per_decode_context_s": "a token of context of a decode",
    "arrivals": "arrivals",
}
_PART = 1000
"""A rate is lowered by this part of it to see what it contributes."""
_ROUND_OFF = 1e-4
"""A smaller share of the bound is not shown: whole rates cannot be lowered by exactly that part."""
_TICKS_PER_US = TICKS_PER_SECOND // 10**6


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "bound",
        examples=(
            "optimizer bound gsm8k/paper-200",
            "optimizer bound gsm8k/gsm8k-1319 --engine llama-65b-fp8@h200 --objective makespan",
            "optimizer bound azure.csv --engine llama3.1-8b@h200 --count 500 --objective ttft --json bound.json",
            "optimizer bound instance.json --certificate proof.json",
            "optimizer check proof.json --instance instance.json",
        ),
    )(bound)


def bound(
    workload: InstanceOptions,
    engine: EngineOptions,
    objective: Objectives = None,
    time_limit: TimeLimit = 20.0,
    seed: Seed = 0,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", rich_help_panel=_PANEL, help="Write the proof, for optimizer check."),
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", rich_help_panel=_PANEL,
                     help="Write the bound, what it consists of, and the proof."),
    ] = None,
) -> None:  # fmt: skip
    """Prove a value that no schedule of an instance can be below, without looking for a schedule.

    Printed is what the bound consists of: what a step, a prompt token, a decode, a token of context cost at least on
    this engine, whatever else is in the step, and which part of the bound each of them makes.

    Objectives: makespan, mean-latency, weighted-latency and ttft; optimizer solve --help says what they mean.
    """
    from optimizer.cli.workload import load, source_path
    from optimizer.offline.bounds import best_bound
    from optimizer.offline.objective import parse_objective

    check_outputs([certificate, json], folder=None, source=source_path(workload))
    if objective is not None:
        _only(parse_objective(objective))
    loaded = load(workload, engine)
    instance = loaded.instance(seed)
    goal = _only(parse_objective(objective or instance.objective))
    found = best_bound(instance, goal, time_limit)
    if found is None or found.certificate is None:
        raise InputError(
            f"no bound is known for {goal}; give one of makespan, mean-latency, weighted-latency, ttft",
            field="objective",
        )
    # Prices on rounds are thousands of numbers; lines are a handful, and say something.
    lines = lines_of(found.certificate) if found.by == "work" else []
    parts = contributions(instance, lines, goal) if lines else {}
    if certificate is not None:
        write_json(certificate, found.certificate)
    if json is not None:
        write_json(json, {**_document(instance, goal, found, parts), **loaded.describe()})
    introduce(instance, goal, known=loaded.describe()["lengths"])
    _show(found, goal, lines, parts)
    for path in (certificate, json):
        if path is not None:
            say(f"wrote {path}")


def _only(objectives: Sequence[Objective]) -> Objective:
    if len(objectives) > 1:
        raise InputError("a bound is for one objective; give the first alone", field="objective")
    return objectives[0]


def lines_of(certificate: Mapping[str, Any]) -> list[Line]:
    """Give the lines of the certificate of a work bound."""
    from optimizer.certificates.step_lines import Line

    return [
        Line(tuple(line["rates"]), tuple(tuple(w) for w in line["weights"])) for line in certificate["lines"]
    ]


def contributions(instance: Instance, lines: Sequence[Line], objective: str) -> dict[str, Fraction]:
    """Say what a work bound consists of.

    Where neither the line that counts nor the order of the requests changes, the bound is linear in each rate. So
    it is told by how much the bound falls when that rate of every line is a little lower.

    Parameters
    ----------
    instance, lines, objective
        Of the bound.

    Returns
    -------
    dict
        By name of a rate, in the units of the objective. Where requests arrive over time, `arrivals` is what is left:
        the time until they are there, less the time by which they come later than others that they wait for.
    """
    from dataclasses import replace

    from optimizer.certificates.step_lines import FIELDS
    from optimizer.certificates.work import work_bound

    whole = work_bound(instance, lines, objective)
    found = {}
    for x, field in enumerate(FIELDS):
        rate = max(line.rates[x] for line in lines)
        less = [
            replace(line, rates=tuple(r - r // _PART * (i == x) for i, r in enumerate(line.rates)))
            for line in lines
        ]
        fall = whole - work_bound(instance, less, objective) if rate >= _PART else whole * 0
        found[field] = fall * rate / max(1, rate // _PART)
    rest = whole - sum(found.values())
    return {**found, "arrivals": rest} if instance.requests.arrival_s.any() else found


def _document(instance: Instance, objective: str, found: Bound, parts: dict[str, Fraction]) -> dict[str, Any]:
    from optimizer.report.summary import versions

    return {
        "schema": _SCHEMA,
        "instance": instance.name,
        "instance_sha256": instance.sha256,
        "objective": objective,
        "dual": found.value,
        "bound_by": found.by,
        "contributions": {name: float(part) for name, part in parts.items()},
        "certificate": found.certificate,
        "versions": versions(),
    }


def _show(found: Bound, objective: str, lines: Sequence[Line], parts: Mapping[str, Fraction]) -> None:
    from optimizer.certificates.step_lines import FIELDS
    from optimizer.offline.objective import UNITS
    from optimizer.report.table import Column, Table, figure

    many = f", whichever of {len(lines)} lines is the highest" if len(lines) > 1 else ""
    print(
        f"bound: {shown(found.value)} {UNITS[objective]}, by {found.by}: no schedule has a smaller {objective}."
    )
    if not lines:
        print("It is proved by a price on the memory of each round; --certificate writes them down.")
        return
    print(f"A step takes at least the sum of these, whatever it computes{many}:\n")

    def rate(name: str) -> str | None:
        if name not in FIELDS:
            return None
        rates = sorted(line.rates[FIELDS.index(name)] / _TICKS_PER_US for line in lines)
        return " to ".join(dict.fromkeys(figure(rates[end]) for end in (0, -1)))

    whole = sum(parts.values()) or 1
    rows = [
        {"name": _PARTS[name], "rate": rate(name), "part": float(part), "share": float(part / whole)}
        for name, part in parts.items()
        if abs(part) > _ROUND_OFF * whole
    ]
    columns = (
        Column("name", "for"), Column("rate", "at least", "us"), Column("part", "of the bound", UNITS[objective]),
        Column("share", "share", "%", scale=100),
    )  # fmt: skip
    show(Table(columns, rows))

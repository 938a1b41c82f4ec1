"""`optimizer policies`, `optimizer engines` and `optimizer instances`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from optimizer.cli.command import command
from optimizer.cli.options import PolicyFile, load_policy_files
from optimizer.cli.output import terminal_width


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(
        app,
        "policies",
        examples=(
            "optimizer policies",
            "optimizer policies --policy-file mine.py",
            "optimizer simulate trace.csv --engine llama3.1-8b@h200 --policy srpt",
        ),
    )(policies)
    command(
        app,
        "engines",
        examples=("optimizer engines", "optimizer simulate trace.csv --engine mixtral-8x7b-tp2@h100"),
    )(engines)
    command(
        app,
        "instances",
        examples=(
            "optimizer instances",
            "optimizer instances kv-ramps",
            "optimizer simulate gsm8k/paper-200-case-17 --policy lpt",
        ),
    )(instances)


def policies(policy_file: PolicyFile = None) -> None:
    """List the scheduling policies: a line on each, and its options with their defaults."""
    from optimizer.policies import options_of, policy_names
    from optimizer.report.table import two_columns

    load_policy_files(policy_file)
    lines = []
    for name in policy_names():
        lines.append((name, _first_line(name)))
        given = ", ".join(f"{option}={default}" for option, default in options_of(name).items())
        if given:
            lines.append(("", f"  --policy-option {given}"))
    print(two_columns(lines, terminal_width()))


def _first_line(name: str) -> str:
    from optimizer.policies import describe
    from optimizer.policies.base import policy_class

    return describe(name) if (policy_class(name).__doc__ or "").strip() else "(its class has no docstring)"


def engines(
    models: Annotated[
        bool, typer.Option("--models/--no-models", help="Also list the LLMs and GPUs that names are made of.")
    ] = True,
) -> None:
    """List the engines with a card, and the LLMs and GPUs that any other is estimated from.

    Any <llm>[-fp8][-tp<n>]@<gpu> is an engine; without a card of its own its step times are estimated from
    the specifications (roofline). The error is the median one of a step, or that of estimates for the GPU.
    """
    from optimizer.capacity import engine_card, list_engines, list_gpus, list_llms
    from optimizer.report.card import median_error
    from optimizer.report.table import Column, Table, two_columns

    rows = []
    for card in (engine_card(name) for name in list_engines()):
        e = card.engine()
        error = median_error({regime: of.model_dump() for regime, of in card.fit_error.items()})
        median = error[0] if error else card.estimate_error and card.estimate_error.median
        rows.append({"name": e.name, "origin": e.origin, "error": median, "kv": e.kv_tokens,
                     "budget": e.max_num_batched_tokens, "seats": e.max_num_seqs})  # fmt: skip
    columns = (
        Column("name", "engine"), Column("origin", "step times"), Column("error", "error", "%", scale=100),
        Column("kv", "KV cache", "tokens"), Column("budget", "budget", "tokens"), Column("seats", "seats", "requests"),
    )  # fmt: skip
    print(Table(columns, rows).plain())
    if models:
        names = [("LLMs", ", ".join(list_llms())), ("GPUs", ", ".join(list_gpus()))]
        print("\n" + two_columns(names, terminal_width()))


def instances(
    family: Annotated[
        str | None, typer.Argument(metavar="FAMILY", help="List this family alone.", show_default="all")
    ] = None,
) -> None:
    """List the instances that come with the package: a line for all that differ only in their seed.

    Where a command takes a TRACE it also takes such a name; the instance brings its engine and its objective
    (--engine puts it on another one). Names without an engine are requests alone. The README.md of each
    family says where its numbers come from and what is known of it.
    """
    from optimizer.errors import InputError
    from optimizer.report.table import Column, Table
    from optimizer.traces import embedded_names, listed_instances, near_shipped

    rows = [
        {"name": f"{line.family}/{_with_seeds(line.name, line.count)}", "objective": line.objective, "engine": line.engine,
         "requests": f"{line.least:,}" if line.least == line.most else f"{line.least:,}-{line.most:,}"}
        for line in listed_instances()
        if family in (None, line.family)
    ]  # fmt: skip
    rows += [{"name": name} for name in embedded_names() if family in (None, name.partition("/")[0])]
    if not rows:
        raise InputError(f"{family!r} is no family; {near_shipped(family or '')}", field="FAMILY")
    columns = (
        Column("name", "instance"), Column("requests", "requests"),
        Column("objective", "objective"), Column("engine", "engine"),
    )  # fmt: skip
    print(Table(columns, rows).plain())


def _with_seeds(name: str, count: int) -> str:
    return name.replace("{seed}", f"0..{count - 1}")

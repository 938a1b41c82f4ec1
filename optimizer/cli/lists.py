"""`optimizer policies` and `optimizer engines`: what there is."""

from __future__ import annotations

from typing import Annotated

import typer

from optimizer.cli.command import command


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    command(
        app,
        "policies",
        examples=(
            "optimizer policies",
            "optimizer simulate trace.csv --engine llama3.1-8b@h200 --policy srpt",
        ),
    )(policies)
    command(
        app,
        "engines",
        examples=("optimizer engines", "optimizer simulate trace.csv --engine mixtral-8x7b-tp2@h100"),
    )(engines)


def policies() -> None:
    """List the scheduling policies: a line on each, and its options with their defaults."""
    from optimizer.policies import describe, options_of, policy_names
    from optimizer.report.table import two_columns

    lines = []
    for name in policy_names():
        lines.append((name, describe(name)))
        given = ", ".join(f"{option}={default}" for option, default in options_of(name).items())
        if given:
            lines.append(("", f"  --policy-option {given}"))
    print(two_columns(lines))


def engines(
    models: Annotated[
        bool, typer.Option("--models/--no-models", help="Also list the LLMs and GPUs that names are made of.")
    ] = True,
) -> None:
    """List the engines with measured or fitted step times, and the LLMs and GPUs for estimated ones.

    Any <llm>[-fp8][-tp<n>]@<gpu> is an engine; without a card of its own its step times are estimated from
    the specifications (roofline).
    """
    from optimizer.capacity import engine, list_engines, list_gpus, list_llms
    from optimizer.report.table import Column, Table

    cards = [engine(name) for name in list_engines()]
    rows = [
        {"name": e.name, "origin": e.origin, "kv": e.kv_tokens, "budget": e.max_num_batched_tokens,
         "seats": e.max_num_seqs, "source": e.source[:60]}
        for e in cards
    ]  # fmt: skip
    columns = (
        Column("name", "engine"), Column("origin", "step times"), Column("kv", "KV cache", "tokens"),
        Column("budget", "budget", "tokens"), Column("seats", "seats", "requests"),
    )  # fmt: skip
    print(Table(columns, rows).plain())
    if models:
        print(f"\nLLMs: {', '.join(list_llms())}\n\nGPUs: {', '.join(list_gpus())}")

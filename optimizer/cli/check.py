"""`optimizer check`: is a schedule what an engine could have done?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optimizer.cli.command import ANSWER_IS_NO, command


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "check",
        examples=(
            "optimizer simulate trace.csv --engine llama3.1-8b@h200 --schedule s.json --instance-out i.json",
            "optimizer check s.json --instance i.json",
        ),
    )(check)


def check(
    schedule: Annotated[
        Path,
        typer.Argument(metavar="SCHEDULE", help="A schedule in JSON, as --schedule of simulate writes it."),
    ],
    instance: Annotated[
        Path,
        typer.Option(
            "--instance",
            metavar="FILE",
            help="The instance in JSON, as --instance-out of simulate writes it.",
        ),
    ],
) -> None:
    """Check a schedule against its instance, with code that the simulator does not share.

    Prints yes and ends with 0, or names every violated rule and ends with 1. Judged are: KV capacity in each
    step, each token computed once, prefill before decode, token budget and seats, times that follow from the
    step-time model, and no request lost.
    """
    from optimizer.check import check as judge
    from optimizer.problem import Instance, Schedule

    report = judge(Schedule.read(schedule), Instance.read(instance))
    print(report)
    if not report.ok:
        raise typer.Exit(ANSWER_IS_NO)

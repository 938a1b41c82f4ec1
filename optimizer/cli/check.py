"""`optimizer check`: is a schedule what an engine could have done, and does a certificate prove what it says?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli.command import ANSWER_IS_NO, command

if TYPE_CHECKING:
    from optimizer.problem import Instance


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "check",
        examples=(
            "optimizer simulate trace.csv --engine llama3.1-8b@h200 --schedule s.json --instance-out i.json",
            "optimizer check s.json --instance i.json",
            "optimizer solve i.json --out solved",
            "optimizer check solved/certificate.json --instance i.json",
            "optimizer check results/paper-200/certificate.json --instance gsm8k/paper-200",
        ),
    )(check)


def check(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A schedule or a certificate in JSON, as optimizer solve writes them (--schedule of simulate and "
            "--certificate of bound, too).",
        ),
    ],
    instance: Annotated[
        str,
        typer.Option(
            "--instance",
            metavar="INSTANCE",
            help="The instance in JSON, as solve, and --instance-out of simulate, write it; or the name of one that is "
            "shipped, such as gsm8k/paper-200.",
        ),
    ],
) -> None:
    """Check a schedule, or the certificate of a bound, against its instance.

    A schedule is judged by code that the simulator does not share. Prints yes and ends with 0, or names every
    violated rule and ends with 1. Judged are: KV capacity in each step, each token computed once, prefill before
    decode, token budget and seats, times that follow from the step-time model, and no request lost.

    A certificate is computed again in exact arithmetic, from nothing but itself and the instance. Prints the bound
    that it proves and ends with 0, or says what in it proves nothing and ends with 1.
    """
    from optimizer.certificates.document import SCHEMA
    from optimizer.check import check as judge
    from optimizer.problem import Schedule
    from optimizer.problem.instance import read_json

    document = read_json(file)
    if isinstance(document, dict) and document.get("schema") == SCHEMA:
        right = _certificate(document, _instance(instance), str(file))
    else:
        report = judge(Schedule.from_document(document, file=str(file)), _instance(instance))
        print(report)
        right = report.ok
    if not right:
        raise typer.Exit(ANSWER_IS_NO)


def _instance(file_or_name: str) -> Instance:
    from optimizer.errors import InputError
    from optimizer.problem import Instance
    from optimizer.traces import instance, list_instances, near_shipped

    if Path(file_or_name).exists():
        return Instance.read(Path(file_or_name))
    if file_or_name in list_instances():
        return instance(file_or_name)
    raise InputError(
        f"there is no such file, and no instance of that name; {near_shipped(file_or_name)}",
        file=file_or_name,
    )


def _certificate(document: Any, instance: Instance, file: str) -> bool:
    from optimizer.certificates import verify
    from optimizer.errors import InputError
    from optimizer.offline.objective import UNITS

    try:
        verified = verify(document, instance, file=file)
    except InputError as error:  # whatever is wrong with it, it proves nothing
        print(f"no: {error}")
        return False
    bound, objective = verified.bound, verified.objective
    unit = UNITS[objective]
    print(
        f"yes: no schedule has a {objective} below {verified.rounded_down!r} {unit}, proved by {verified.kind}"
    )
    print(f"exactly: {bound.numerator} / {bound.denominator} {unit}")
    return True

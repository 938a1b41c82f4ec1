"""The application: its commands, and `--version`."""

from __future__ import annotations

from typing import Annotated

import typer

from optimizer.cli import (
    bound,
    calibrate,
    check,
    compare,
    demo,
    generate,
    lists,
    serve_demo,
    simulate,
    solve,
    validate,
)

app = typer.Typer(
    name="optimizer",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog="Start with:\n\noptimizer demo\n\noptimizer simulate --help",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from optimizer.version import package_version

        typer.echo(f"optimizer {package_version()}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and stop."),
    ] = False,
) -> None:
    """Schedule LLM inference: simulate request traces on a paged-KV engine, compare policies, find schedules and bounds."""


for _group in (
    demo,
    simulate,
    compare,
    solve,
    serve_demo,
    bound,
    check,
    calibrate,
    validate,
    generate,
    lists,
):
    _group.add_to(app)

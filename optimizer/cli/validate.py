"""`optimizer validate`: measured runs against their simulation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli.command import command
from optimizer.cli.output import check_outputs, make_folder, say, show
from optimizer.errors import InputError

if TYPE_CHECKING:
    from optimizer.validation import RunComparison

_HEADINGS = {
    "wall": ("wall time", "s"), "ttft_mean": ("TTFT, mean", "s"), "ttft_p50": ("TTFT, p50", "s"),
    "ttft_p99": ("TTFT, p99", "s"), "e2e_mean": ("end to end, mean", "s"), "e2e_p50": ("end to end, p50", "s"),
    "e2e_p99": ("end to end, p99", "s"), "steps": ("steps", ""), "preemptions": ("preemptions", ""),
}  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "validate",
        examples=(
            "optimizer validate --data measured/",
            "optimizer validate --data measured/ --json errors.json --plot errors.png",
            "optimizer validate --data measured/ --engine-for llama3.1-8b-bf16=mine.yaml",
        ),
    )(validate)


def validate(
    data: Annotated[
        Path,
        typer.Option("--data", metavar="DIR", help="Folder with run-<engine>-<workload>.json, -requests.csv and perhaps "
                     "-steps.csv of each run.", show_default=False),
    ],
    policy: Annotated[
        str,
        typer.Option("--policy", metavar="NAME", help="Scheduling policy of the measured engine; optimizer policies "
                     "lists them."),
    ] = "vllm-v1",
    engine_for: Annotated[
        list[str] | None,
        typer.Option("--engine-for", metavar="MODEL=CARD", show_default="by the model's name",
                     help="Engine for a model named in the runs: a name (optimizer engines lists them) or a .yaml file; "
                     "may be given again."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", rich_help_panel="Output",
                     help="Write a list with an object per run: every figure, measured and simulated, and its error."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", rich_help_panel="Output",
                     help="Draw simulated against measured latencies (.png, .pdf or .svg; needs matplotlib)."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", rich_help_panel="Output",
                     help="Write validation.json and, per run, a row per request with measured and simulated times."),
    ] = None,
) -> None:  # fmt: skip
    """Replay measured runs of a real engine in the simulator, and print how far the simulation is from them.

    Requests arrive when the client sent them; limits are those of the run, step times those of the engine's card.
    Wall time is from the first request sent to the last one finished; time to first token (TTFT) and
    end-to-end latency are the client's. Errors are signed and relative to what was measured.
    """
    from optimizer.report.plot import need_matplotlib, picture_kind

    check_outputs([json_file, plot], folder=out, source=data)
    if plot is not None:
        need_matplotlib()
        picture_kind(plot)

    from optimizer.policies import make_policy
    from optimizer.validation import validate as replay

    make_policy(policy)  # a wrong name need not wait for the files
    runs = replay(data, policy, engine_for=_pairs(engine_for or ()))
    written = _write(runs, json_file, plot, out)
    _print(runs)
    for path in written:
        say(f"wrote {path}")


def _pairs(given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in given:
        model, equals, card = text.partition("=")
        if not (model and equals and card):
            raise InputError(
                f"{text!r}; expected MODEL=CARD: llama3.1-8b-bf16=mine.yaml", field="--engine-for"
            )
        pairs[model] = card
    return pairs


def _write(
    runs: Sequence[RunComparison], file: Path | None, plot: Path | None, out: Path | None
) -> list[Path]:
    """Write what was asked for; give the paths."""
    from optimizer.problem.files import written_whole
    from optimizer.validation.output import plot_latencies, write_requests

    written = []
    if out is not None:
        for run in runs:
            written.append(make_folder(out) / f"{run.run}-requests.csv")
            write_requests(written[-1], run)
    if plot is not None:
        from optimizer.report.plot import save

        written.append(plot)
        save(plot_latencies(runs), plot)
    for path in (file, None if out is None else make_folder(out) / "validation.json"):
        if path is not None:
            written.append(path)
            with written_whole(path) as stream:
                stream.write(
                    json.dumps([run.to_document() for run in runs], indent=2, allow_nan=False) + "\n"
                )
    return written


def _print(runs: Sequence[RunComparison]) -> None:
    from optimizer.report.table import Column, Table, figure

    each = (
        Column("name", "figure"), Column("real", "measured"), Column("simulated", "simulated"), Column("error", "error"),
    )  # fmt: skip
    for run in runs:
        rows = []
        for key, (heading, unit) in _HEADINGS.items():
            of = run.figures[key]
            real, simulated = (f"{figure(x)} {unit}".rstrip() for x in (of.real, of.simulated))
            rows.append({"name": heading, "real": real, "simulated": simulated, "error": percent(of.error)})
        print(_headline(run), end="\n\n")
        show(Table(each, rows))
        print()
    keys = [key for key in _HEADINGS if key != "steps"]
    columns = (
        Column("run", "errors"),
        *(Column(key, _HEADINGS[key][0]) for key in keys),
        Column("fit", "in a fit"),
    )
    table = [
        {"run": r.run, **{k: percent(r.error(k)) for k in keys}, "fit": "yes" if r.in_fit else "no"}
        for r in runs
    ]
    show(Table(columns, table), all_in="the tables above")


def _headline(run: RunComparison) -> str:
    e, m = run.engine, run.measured
    wall = (
        ""
        if m.limits.wall_s is None
        else f"; the run's own wall_s, from the start of its clock, is {m.limits.wall_s:g} s"
    )
    fit = (
        "its card was fitted to this run, among others"
        if run.in_fit
        else "it took no part in a fit that its card names"
    )
    return (
        f"{run.run}: {len(m.requests):,} requests, {run.simulation.policy} on {run.card}\n"
        f"limits: {e.max_num_batched_tokens:,} tokens per step, {e.max_num_seqs:,} seats, {e.kv_blocks:,} KV blocks of "
        f"{e.block_tokens}\n"
        f"arrivals: {'as sent' if m.sent else 'as planned'}; wall time: from the first arrival to the last finish{wall}\n"
        f"fit: {fit}"
    )


def percent(error: float | None) -> str:
    """Show a relative error with its sign.

    >>> percent(-0.0123), percent(0.5), percent(None), percent(0.0)
    ('-1.2 %', '+50.0 %', '-', '0.0 %')
    """
    if error is None:
        return "-"
    shown = f"{100 * error:+.1f} %"
    return "0.0 %" if shown[1:] == "0.0 %" else shown

"""`optimizer compare`: many policies on one trace, side by side."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli.command import ANSWER_IS_NO, command
from optimizer.cli.options import (
    Check,
    EngineOptions,
    OutFolder,
    PolicyFile,
    PolicyOption,
    Seed,
    WorkloadOptions,
    load_policy_files,
    policy_options,
    whole,
)
from optimizer.cli.output import check_outputs, make_folder, say, show, write_json

if TYPE_CHECKING:
    from optimizer.comparison import Comparison, Failure
    from optimizer.comparison.task import Task

_PANEL = "Comparison"
Summary = Mapping[str, Any]
Progress = Callable[[int, int, "Summary | Failure | None"], None]


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "compare",
        examples=(
            "optimizer compare azure.csv --engine llama3.1-8b@h200 --policies all",
            "optimizer compare azure.csv --engine llama3.1-8b@h200 --policies vllm-v1,sarathi,srpt --rate 30",
            "optimizer compare lengths.csv --engine llama3.1-8b@h200 --rate 20 --seeds 5 --sort goodput_per_s",
            "optimizer compare azure.csv --engine llama3.1-8b@h200 --policy-file mine.py --policies mine,vllm-v1 --check",
            "optimizer compare azure.csv --engine llama3.1-8b@h200 --resume",
        ),
    )(compare)


def compare(
    workload: WorkloadOptions,
    engine: EngineOptions,
    policies: Annotated[
        str,
        typer.Option("--policies", metavar="NAMES", rich_help_panel=_PANEL,
                     help="all, or names separated by commas; optimizer policies lists them."),
    ] = "all",
    policy_option: PolicyOption = None,
    policy_file: PolicyFile = None,
    seeds: Annotated[
        int,
        typer.Option("--seeds", callback=whole(1, 10_000), metavar="N", rich_help_panel=_PANEL,
                     help="Run each policy with N seeds, from --seed on: they draw arrivals (--rate where the file has none, "
                     "--cv), noisy knowledge (--lengths), and what policies draw. The table gives means and 95 % "
                     "confidence intervals."),
    ] = 1,
    seed: Seed = 0,
    check: Check = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", callback=whole(1, 4096), metavar="J", rich_help_panel=_PANEL, show_default="cores",
                     help="Processes side by side."),
    ] = None,
    sort: Annotated[
        str,
        typer.Option("--sort", metavar="FIGURE", rich_help_panel=_PANEL,
                     help="Figure to sort by, best first: output_tokens_per_s, requests_per_s, makespan_s, "
                     "{ttft,tpot,e2e}_{mean,p99}_s, goodput_per_s, kv_use_mean, preemptions, ..."),
    ] = "e2e_mean_s",
    resume: Annotated[
        bool,
        typer.Option("--resume", rich_help_panel=_PANEL,
                     help="Keep runs whose results are in DIR already, if they are of the same requests, engine, options "
                     "and versions."),
    ] = False,
    out: OutFolder = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", rich_help_panel="Output",
                     help="Draw the distributions of latencies (.png, .pdf or .svg; needs matplotlib)."),
    ] = None,
) -> None:  # fmt: skip
    """Compare scheduling policies on the same requests and engine.

    Every policy runs in a process of its own; one that fails is listed, and the others go on (exit code 1).
    Each result is written to DIR/runs as it comes, so Ctrl-C loses nothing that is finished; --resume goes on
    from there. The table goes to standard output, and to DIR/table.csv and DIR/table.json.
    """
    from optimizer.cli.workload import load, source_path
    from optimizer.comparison import compare as run

    source = source_path(workload)
    folder = out or Path("results", source.stem)
    _refuse_early(source, folder, sort, plot)
    options = policy_options(policy_option)
    load_policy_files(policy_file)
    loaded = load(workload, engine)
    try:
        with progress_on_terminal() as progress:
            result = run(
                loaded.instance if loaded.is_drawn else loaded.instance(seed),
                policies,
                range(seed, seed + seeds),
                jobs,
                options=options,
                sort=sort,
                check=check,
                card=loaded.card,
                done=_kept(folder) if resume else None,
                progress=_write_each(folder, loaded.describe(), progress),
            )
    except KeyboardInterrupt:
        say(f"what is finished is in {folder}/runs; the same command with --resume goes on from there")
        raise
    present(result, folder, plot, title=f"{loaded.name} on {loaded.engine.name}")
    if result.failures:
        raise typer.Exit(ANSWER_IS_NO)


def _refuse_early(source: Path, folder: Path, sort: str, plot: Path | None) -> None:
    """Raise at what could only fail after all the work."""
    from optimizer.comparison.result import sort_column
    from optimizer.report.plot import need_matplotlib, picture_kind

    sort_column(sort)
    check_outputs([plot], folder=folder, source=source)
    if plot is not None:
        need_matplotlib()
        picture_kind(plot)


def present(result: Comparison, folder: Path, plot: Path | None = None, *, title: str = "") -> None:
    """Print a comparison and write its table, as CSV and JSON, and its picture."""
    # Files first: a pipe that closes early must not cost them.
    write_json(make_folder(folder) / "table.json", result.to_document())
    _write_csv(folder / "table.csv", result)
    if plot is not None:
        from optimizer.report.plot import plot_latencies, save

        first = result.seeds[0]
        order = [row["policy"] for row in result.rows]
        quantiles = {run["policy"]: run["quantiles"] for run in result.runs if run["seed"] == first}
        save(plot_latencies({p: quantiles[p] for p in order if p in quantiles}, title=title), plot)
    if result.runs:
        show(result.table(), all_in=f"{folder}/table.csv")
    for note in result.notes():
        print(note)
    if plot is not None:
        say(f"wrote {plot}")
    say(f"wrote {folder}/table.csv, table.json and runs/*.json")


def run_file(folder: Path, policy: str, seed: int) -> Path:
    """Give the file for the summary of a run."""
    return folder / "runs" / f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', policy)}-seed{seed}.json"


def _kept(folder: Path) -> Callable[[Task], Summary | None]:
    """Give a function that finds the summary of a run made before."""
    from optimizer.comparison import is_answered_by

    def kept(task: Task) -> Summary | None:
        try:
            summary = json.loads(run_file(folder, task.name, task.seed).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return summary if isinstance(summary, dict) and is_answered_by(task, summary) else None

    return kept


def _write_each(folder: Path, source: Mapping[str, Any], progress: Progress) -> Progress:
    """Give a progress function that also writes each result as it comes."""

    def write(done: int, total: int, last: Summary | Failure | None) -> None:
        if last is None and done:
            say(f"{done} of {total} runs are there already")
        if isinstance(last, Mapping):
            path = run_file(folder, last["policy"], last["seed"])
            make_folder(path.parent)
            write_json(path, {**last, **source})
        progress(done, total, last)

    return write


@contextmanager
def progress_on_terminal() -> Iterator[Progress]:
    """Give a function that moves a bar on standard error, and does nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total, last: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def move(done: int, total: int, last: Summary | Failure | None) -> None:
            name = (
                ""
                if last is None
                else last["policy"]
                if isinstance(last, Mapping)
                else f"{last.policy} failed"
            )
            bar.update(task, completed=done, total=total, description=name)

        yield move


def _write_csv(path: Path, result: Comparison) -> None:
    import csv

    from optimizer.problem.files import written_whole

    rows = result.rows
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with written_whole(path) as out:
        writer = csv.DictWriter(out, columns or ["policy"], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

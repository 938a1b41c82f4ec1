"""`optimizer demo`: all policies on two workloads that come with the package, and the best schedule of the first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli.command import ANSWER_IS_NO, command
from optimizer.cli.compare import present, progress_on_terminal, run_file
from optimizer.cli.options import TimeLimit, whole
from optimizer.cli.output import check_outputs, make_folder, write_json
from optimizer.cli.solve_output import Outputs, deliver, introduce, progress_lines

if TYPE_CHECKING:
    from optimizer.problem import Instance

_GSM8K, _CHAT_REQUESTS, _CHAT_RATE = "gsm8k/gsm8k-1319", 2000, 55.0


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(app, "demo", examples=("optimizer demo", "optimizer demo --out demo --jobs 2"))(demo)


def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for results, made where missing.")
    ] = Path("results", "demo"),
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            callback=whole(1, 4096),
            metavar="J",
            show_default="cores",
            help="Processes side by side.",
        ),
    ] = None,
    time_limit: TimeLimit = 20.0,
) -> None:
    """Compare all policies on two workloads, a batch of questions and chats that arrive over time, and solve the batch.

    The batch: 1,319 GSM8K questions for LLaMA-65B on an H200, all there at the start. The chats: 2,000 requests
    with shared prefixes for Llama-3.1-8B on an H200, near the rate that it can just serve. Solved is for the makespan.
    """
    from optimizer.comparison import compare

    check_outputs([], folder=out, source=Path())
    failed = False
    for number, (title, instance, sort) in enumerate((
        ("1,319 GSM8K questions at once, LLaMA-65B (fp8) on one H200: what counts is the makespan", questions(), "makespan_s"),
        (f"{_CHAT_REQUESTS:,} chats at {_CHAT_RATE:g} per second, Llama-3.1-8B on one H200: what counts is latency",
         chats(), "e2e_mean_s"),
    )):  # fmt: skip
        print("\n" * (number > 0) + title, flush=True)
        folder = out / instance.name
        with progress_on_terminal() as progress:
            result = compare(instance, jobs=jobs, sort=sort, check=True, progress=progress)
        for run in result.runs:
            path = run_file(folder, run["policy"], run["seed"])
            make_folder(path.parent)
            write_json(path, run)
        present(result, folder)
        failed = failed or bool(result.failures)
    _solve(out, time_limit)
    if failed:
        raise typer.Exit(ANSWER_IS_NO)


def _solve(out: Path, time_limit_s: float) -> None:
    from optimizer.offline import solve

    instance, objective = questions(), "makespan"
    print(
        f"\nThe questions again, now solved: the best schedule that {time_limit_s:g} s find, and a bound below all of them"
    )
    introduce(instance, objective)
    with progress_lines(instance, objective, time_limit_s) as tell:
        result = solve(instance, objective=objective, time_limit_s=time_limit_s, on_progress=tell)
    deliver(result, Outputs(), out / instance.name, source=Path(), about={})


def questions() -> Instance:
    """Give the batch: all GSM8K questions at once, for an engine whose memory is scarce."""
    from optimizer.capacity import engine
    from optimizer.problem import Instance, with_knowledge
    from optimizer.traces import embedded

    requests = with_knowledge(embedded(_GSM8K).requests, "exact")
    return Instance(
        "gsm8k-1319", requests, engine("llama-65b-fp8@h200", max_num_seqs=200, max_num_batched_tokens=8192)
    )


def chats() -> Instance:
    """Give the chats: shared prefixes, arriving at about the rate that the engine can just serve."""
    from optimizer.capacity import engine
    from optimizer.problem import Instance, with_knowledge
    from optimizer.traces import generate

    requests = with_knowledge(generate("shared-prefix", _CHAT_REQUESTS, 0, rate=_CHAT_RATE), "exact")
    return Instance("chats-2000", requests, engine("llama3.1-8b@h200", prefix_caching=True))

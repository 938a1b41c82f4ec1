"""`optimizer solve`: a schedule for an instance, and how far from optimal it can be at most."""

from __future__ import annotations

from pathlib import Path

import typer

from optimizer.cli.command import command
from optimizer.cli.options import EngineOptions, InstanceOptions, Seed, SolveOptions
from optimizer.cli.output import check_outputs
from optimizer.cli.solve_output import Outputs, deliver, introduce, progress_lines


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "solve",
        examples=(
            "optimizer solve gsm8k/paper-200 --time-limit 20",
            "optimizer solve gsm8k/gsm8k-1319 --engine llama-65b-fp8@h200 --objective makespan",
            "optimizer solve azure.csv --engine llama3.1-8b@h200 --count 500 --objective mean-latency --time-limit 30",
            "optimizer solve instance.json --objective goodput,mean-latency --ttft-slo 1 --gap 0.01",
            "optimizer solve lengths.csv --engine llama3.1-8b@h200 --lengths noise:0.5 --out solved",
            "optimizer check solved/schedule.json --instance solved/instance.json",
            "optimizer check solved/certificate.json --instance solved/instance.json",
        ),
    )(solve)


def solve(
    sought: SolveOptions,
    workload: InstanceOptions,
    engine: EngineOptions,
    outputs: Outputs,
    seed: Seed = 0,
) -> None:
    """Find a good schedule for an instance, and prove how far from optimal it can be.

    Policies come first, then a bound, then a search that goes on until the time limit, the wanted gap, or a proof that
    nothing is better. Each better schedule and bound gets a line. Ctrl-C ends the search, keeps the best so far, and writes it.

    The schedule is what the simulator executed, and the independent checker judged it. The bound holds for every schedule of
    this engine; gap = (value - bound) / value. Objectives, all made small:

    makespan: the moment at which the last request is done, in seconds. For batches.

    mean-latency: the mean time from a request's arrival to its last token, in seconds.

    weighted-latency: the same, where a request counts by its weight.

    ttft: the mean time from a request's arrival to its first token, in seconds.

    goodput: the share of requests that miss their level of TTFT or TPOT (--ttft-slo, --tpot-slo). No bound is known for it.

    Two with a comma: the second decides among schedules that are equally good by the first.

    With --lengths the plan is made with what is known of output lengths, and executed with the true ones.
    """
    from optimizer.cli.workload import load, source_path
    from optimizer.offline import solve as run
    from optimizer.offline.objective import parse_objective

    source = source_path(workload)
    folder = outputs.out or Path("results", source.stem)
    _refuse_early(outputs, folder, source)
    if sought.objective is not None:
        parse_objective(sought.objective)  # what is wrong here need not wait for a long file
    loaded = load(workload, engine)
    instance, about = loaded.instance(seed), loaded.describe()
    objective = sought.objective or instance.objective
    introduce(instance, objective, known=about["lengths"])
    with progress_lines(instance, objective, sought.time_limit) as tell:
        result = run(
            instance,
            objective=objective,
            time_limit_s=sought.time_limit,
            gap=sought.gap,
            seed=seed,
            on_progress=tell,
        )
    deliver(result, outputs, folder, source=source, about=about, card=loaded.card)


def _refuse_early(outputs: Outputs, folder: Path, source: Path) -> None:
    """Raise at what could only fail after all the work."""
    from optimizer.report.plot import need_matplotlib, picture_kind

    o = outputs
    files = (o.json, o.schedule, o.certificate, o.instance_out, o.plot, o.plan)
    check_outputs(files, folder=folder, source=source)
    if o.plot is not None:
        need_matplotlib()
        picture_kind(o.plot)

"""`optimizer simulate`: one policy on one trace."""

from __future__ import annotations

from dataclasses import dataclass
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
)
from optimizer.cli.output import check_outputs, make_folder, say, show, terminal_width, write_json

if TYPE_CHECKING:
    from optimizer.check import CheckReport
    from optimizer.cli.workload import Workload
    from optimizer.simulator import Simulation

_PANEL = "Output"
_QUICK_S = 2.0
"""Simulations that take longer are not made twice more unless asked for."""


@dataclass(frozen=True)
class Again:
    """What is learned by simulating again."""

    band: Annotated[
        bool | None,
        typer.Option("--band/--no-band", rich_help_panel="Policy and measure",
                     show_default="if a simulation takes 2 s or less",
                     help="Simulate twice more, every step as much shorter and longer as the engine's card is known to be "
                     "off, and give figures with the range that follows."),
    ] = None  # fmt: skip
    margin: Annotated[
        bool,
        typer.Option("--margin", rich_help_panel="Policy and measure",
                     help="Find by simulation, some six to ten times more, how many times the rate of arrivals the engine "
                     "could serve until it saturates; otherwise that is estimated."),
    ] = False  # fmt: skip


@dataclass(frozen=True)
class Outputs:
    """What is written where."""

    out: OutFolder = None
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", rich_help_panel=_PANEL, show_default="DIR/summary.json",
                     help="Where the summary goes: figures, limits, seed, versions, fingerprint of the instance."),
    ] = None  # fmt: skip
    requests_csv: Annotated[
        bool,
        typer.Option("--requests-csv/--no-requests-csv", rich_help_panel=_PANEL,
                     help="Write DIR/requests.csv: one row per request, times in seconds."),
    ] = True  # fmt: skip
    schedule: Annotated[
        Path | None,
        typer.Option("--schedule", metavar="FILE", rich_help_panel=_PANEL,
                     help="Write the schedule as JSON, for optimizer check."),
    ] = None  # fmt: skip
    instance_out: Annotated[
        Path | None,
        typer.Option("--instance-out", metavar="FILE", rich_help_panel=_PANEL,
                     help="Write the instance as it was simulated, engine included, as JSON."),
    ] = None  # fmt: skip
    trace_out: Annotated[
        Path | None,
        typer.Option("--trace-out", metavar="FILE", rich_help_panel=_PANEL,
                     help="Write a trace for ui.perfetto.dev: steps, counters, and the life of each request."),
    ] = None  # fmt: skip
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", rich_help_panel=_PANEL,
                     help="Draw batch, queue and KV cache over time (.png, .pdf or .svg; needs matplotlib)."),
    ] = None  # fmt: skip


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "simulate",
        examples=(
            "optimizer simulate azure.csv --engine llama3.1-8b@h200 --count 10000",
            "optimizer simulate azure.csv --engine llama3.1-8b@h200 --policy sarathi --policy-option chunk_size=512",
            "optimizer simulate lengths.csv --engine llama3.1-8b@h200 --rate 20 --max-num-batched-tokens 512",
            "optimizer simulate mooncake.jsonl --engine llama3.1-70b-tp4@h100 --prefix-caching --trace-out trace.json",
            "optimizer simulate azure.csv --engine llama3.1-8b@h200 --policy-file mine.py --policy mine --check",
            "optimizer simulate gsm8k/gsm8k-1319 --engine llama-65b-fp8@h200 --policy srpt --lengths noise:0.5",
        ),
    )(simulate)


def simulate(
    workload: WorkloadOptions,
    engine: EngineOptions,
    outputs: Outputs,
    again: Again,
    policy: Annotated[
        str,
        typer.Option("--policy", metavar="NAME", rich_help_panel="Policy and measure",
                     help="Scheduling policy; optimizer policies lists them."),
    ] = "vllm-v1",
    policy_option: PolicyOption = None,
    policy_file: PolicyFile = None,
    seed: Seed = 0,
    check: Check = False,
    step_by_step: Annotated[
        bool,
        typer.Option("--step-by-step", rich_help_panel="Policy and measure",
                     help="Use the slow reference mode: every step for itself, the same schedule."),
    ] = False,
) -> None:  # fmt: skip
    """Simulate a request trace on an engine under one scheduling policy.

    Prints the figures of the run, and writes a summary (JSON) and a row per request (CSV). Behind a figure
    stands its range, given how far the step times of the engine's card are known to be off.
    TTFT is the time from arrival to the first token, TPOT that per further token, end-to-end
    latency that to the last one; goodput counts requests that meet both levels. Times are in
    seconds of the simulated engine, lengths in tokens.
    """
    from optimizer.cli.workload import load, source_path
    from optimizer.report.plot import need_matplotlib, picture_kind

    folder = outputs.out or Path("results", source_path(workload).stem)
    files = (outputs.json, outputs.schedule, outputs.instance_out, outputs.trace_out, outputs.plot)
    check_outputs(files, folder=folder, source=source_path(workload))
    if outputs.plot is not None:
        need_matplotlib()
        picture_kind(outputs.plot)
    options = policy_options(policy_option)
    load_policy_files(policy_file)

    from optimizer.comparison.policy_files import told_with_place
    from optimizer.errors import PolicyError
    from optimizer.policies import make_policy
    from optimizer.simulator import simulate as run

    make_policy(policy, **options)  # what is wrong here need not wait for a long file
    loaded = load(workload, engine)
    try:
        simulation = run(loaded.instance(seed), policy, seed=seed, step_by_step=step_by_step, options=options)
    except PolicyError as error:
        raise PolicyError(told_with_place(error)) from error
    report = _judged(simulation) if check else None
    summary = {**_summary(simulation, loaded, step_by_step, report), **_again(simulation, loaded, again)}
    # Files first: a pipe that closes early must not cost them.
    written = _write(simulation, summary, outputs, folder)
    _show(summary, loaded)
    for path in written:
        say(f"wrote {path}")
    if report is not None and not report.ok:
        raise typer.Exit(ANSWER_IS_NO)


def _judged(simulation: Simulation) -> CheckReport:
    from optimizer.check import check

    return check(simulation.schedule, simulation.instance)


def _again(simulation: Simulation, workload: Workload, again: Again) -> dict[str, Any]:
    """Give what further simulations tell, by key of the summary."""
    from optimizer.report.accuracy import known_error
    from optimizer.report.band import step_time_band
    from optimizer.report.margin import simulated_margin

    found: dict[str, Any] = {}
    if again.band or (again.band is None and simulation.loop_seconds <= _QUICK_S):
        found["band"] = step_time_band(simulation, card=workload.card)
    else:
        known = known_error(simulation.instance.engine, simulation.schedule, workload.card)
        found["band"] = {**known.to_document(), "figures": None}
    if again.margin:
        found["saturation"] = simulated_margin(simulation)
    return found


def _summary(
    simulation: Simulation, workload: Workload, step_by_step: bool, report: CheckReport | None
) -> dict[str, Any]:
    from optimizer.comparison.policy_files import policy_file_of
    from optimizer.report.summary import peak_memory_mb, summarize

    file = policy_file_of(simulation.policy)
    return {
        **summarize(simulation, card=workload.card),
        **workload.describe(),
        **({} if file is None else {"policy_file_sha256": file.sha256}),
        **({} if report is None else {"check": str(report)}),
        "step_by_step": step_by_step,
        "peak_memory_mb": peak_memory_mb(),
    }


def _write(simulation: Simulation, summary: dict[str, Any], outputs: Outputs, folder: Path) -> list[Path]:
    """Write everything that was asked for; give the paths."""
    from optimizer.report.perfetto import write_perfetto
    from optimizer.report.requests_csv import write_requests_csv

    instance, schedule = simulation.instance, simulation.schedule
    written = []
    if outputs.requests_csv:
        written.append(make_folder(folder) / "requests.csv")
        write_requests_csv(written[-1], simulation.metrics, instance.requests)
    if outputs.schedule is not None:
        written.append(outputs.schedule)
        schedule.write(outputs.schedule)
    if outputs.instance_out is not None:
        written.append(outputs.instance_out)
        instance.write(outputs.instance_out)
    if outputs.trace_out is not None:
        written.append(outputs.trace_out)
        write_perfetto(outputs.trace_out, schedule, instance.requests, instance.engine)
    if outputs.plot is not None:
        from optimizer.report.plot import plot_schedule, save

        written.append(outputs.plot)
        save(plot_schedule(schedule, instance.requests, instance.engine, title=_title(summary)), outputs.plot)
    # The summary comes last: where it is, the rest is too.
    written.append(outputs.json or make_folder(folder) / "summary.json")
    write_json(written[-1], summary)
    return written


def _title(summary: dict[str, Any]) -> str:
    return f"{summary['policy']} on {summary['engine']['name']}, {summary['instance']}: {summary['requests']:,} requests"


def _show(summary: dict[str, Any], workload: Workload) -> None:
    from optimizer.report import band, saturation
    from optimizer.report.card import trust, warning
    from optimizer.report.table import Column, Table, figure, two_columns

    s, o = summary, workload.options

    def ranged(key: str) -> str:
        return band.ranged(s, key)

    speed = s["requests_per_second_simulated"]
    levels = f"TTFT {o.ttft_slo or 0.2:g} s and TPOT {o.tpot_slo or 0.1:g} s"
    own = workload.trace.requests.ttft_slo_s is not None or workload.trace.requests.tpot_slo_s is not None
    print(_title(s), end="\n\n")
    caution = warning(s["engine"])
    load = saturation.about(s["saturation"])
    print(two_columns([
        ("engine", f"{s['engine']['name']}: {_limits(s['limits'])}"),
        ("step times", trust(s["engine"])),
        *([("warning", caution)] if caution else []),
        ("range", band.about(s["band"], caution is not None)),
        ("makespan", f"{ranged('makespan_s')} s"),
        ("throughput", f"{ranged('output_tokens_per_s')} output tokens/s, {ranged('requests_per_s')} requests/s"),
        ("goodput", f"{ranged('goodput_per_s')} requests/s ({figure(100 * (s['slo_attainment'] or 0))} % of all) within "
         + (f"their own levels, or {levels}" if own else levels)),
        *zip(("load", ""), load, strict=False),
        ("KV cache used", f"{figure(s['kv_use_mean'], 100)} % on average, {figure(s['kv_use_peak'], 100)} % at most"),
        ("preemptions", ranged("preemptions")),
        ("simulation", f"{figure(s['steps'])} steps in {figure(s['loop_seconds'])} s, "
         f"{figure(None if speed is None else round(speed))} requests/s"),
    ], terminal_width()), end="\n\n")  # fmt: skip
    columns = (Column("name", "latency"), *(Column(k, k, "s") for k in ("mean", "p50", "p99")))
    rows = [
        {"name": name, **{k: ranged(f"{key}_{k}_s") for k in ("mean", "p50", "p99")}}
        for name, key in (("time to first token (TTFT)", "ttft"), ("time per output token (TPOT)", "tpot"),
                          ("end to end", "e2e"))
    ]  # fmt: skip
    show(Table(columns, rows))
    if "check" in s:
        print(f"\ncheck: {s['check']}")


def _limits(limits: dict[str, Any]) -> str:
    caching = ", prefix caching" if limits["prefix_caching"] else ""
    return (
        f"{limits['max_num_batched_tokens']:,} tokens per step, {limits['max_num_seqs']:,} seats, "
        f"{limits['kv_blocks']:,} KV blocks of {limits['block_tokens']}{caching}"
    )

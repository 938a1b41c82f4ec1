"""What `optimizer solve` prints and writes: what is solved, a line per better schedule or bound, the result, its files."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli import INTERRUPTED
from optimizer.cli.command import ANSWER_IS_NO
from optimizer.cli.options import OutFolder
from optimizer.cli.output import make_folder, say, terminal_width, write_json

if TYPE_CHECKING:
    from optimizer.capacity import EngineCard
    from optimizer.offline import Progress, Result
    from optimizer.problem import Instance

_MEANING = {
    "makespan": "moment at which the last request is done",
    "mean-latency": "mean time from a request's arrival to its last token",
    "weighted-latency": "mean time from a request's arrival to its last token, by its weight",
    "ttft": "mean time from a request's arrival to its first token",
    "goodput": "share of requests that miss their level of TTFT or TPOT",
}
OnProgress = Callable[["Progress"], None]
_ROUND_OFF = 1e-9
_PANEL = "Output"
_WHY = {
    "optimal": "proved optimal",
    "gap": "the wanted gap is reached",
    "time": "the time limit is over",
    "interrupted": "Ctrl-C",
    "exhausted": "nothing is left to try",
}


@dataclass(frozen=True)
class Outputs:
    """What is written where."""

    out: OutFolder = None
    json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", rich_help_panel=_PANEL, show_default="DIR/solve.json",
                     help="Where the result goes: primal, dual, gap, baseline, checked, limit, progress, plan, certificate."),
    ] = None  # fmt: skip
    schedule: Annotated[
        Path | None,
        typer.Option("--schedule", metavar="FILE", rich_help_panel=_PANEL, show_default="DIR/schedule.json",
                     help="Where the schedule goes as it was executed, for optimizer check."),
    ] = None  # fmt: skip
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", rich_help_panel=_PANEL, show_default="DIR/certificate.json",
                     help="Where the proof of the bound goes, for optimizer check."),
    ] = None  # fmt: skip
    instance_out: Annotated[
        Path | None,
        typer.Option("--instance-out", metavar="FILE", rich_help_panel=_PANEL, show_default="DIR/instance.json",
                     help="Where the instance goes as it was solved, engine included: what optimizer check asks for."),
    ] = None  # fmt: skip
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", rich_help_panel=_PANEL, show_default="DIR/picture.png",
                     help="Where the picture goes: batch, queue and KV cache over time, requests on their seats where "
                     "these are few, and value and bound while it was solved (.png, .pdf or .svg; needs matplotlib)."),
    ] = None  # fmt: skip
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", rich_help_panel=_PANEL,
                     help="Write the plan alone: what a policy would have to follow to make this schedule."),
    ] = None  # fmt: skip


def introduce(instance: Instance, objective: str, *, known: str = "exact") -> None:
    """Print what is to be solved."""
    from optimizer.cli.simulate import _limits
    from optimizer.report.summary import limits
    from optimizer.report.table import two_columns

    requests, engine = instance.requests, instance.engine
    last_s = float(requests.arrival_s[-1])
    arrive = f"arriving over {shown(last_s)} s" if last_s else "all there at 0 s"
    first, *second = objective.split(",")
    print(f"{instance.name}: {len(requests):,} requests, {objective}", end="\n\n")
    print(two_columns([
        ("objective", _MEANING[first] + "".join(f"; among equals: {_MEANING[name]}" for name in second)),
        ("requests", f"{int(requests.prompt_tokens.sum()):,} prompt and {int(requests.output_tokens.sum()):,} output tokens, "
         f"{arrive}; lengths known: {known}"),
        ("engine", f"{engine.name}: {_limits(limits(engine))}"),
    ], terminal_width()), end="\n\n", flush=True)  # fmt: skip


@contextmanager
def progress_lines(instance: Instance, objective: str, time_limit_s: float) -> Iterator[OnProgress]:
    """Give a function that prints a line to standard error; on a terminal, another one below it shows the time."""
    import numpy as np

    known = instance.requests.known
    planned = known is not None and not np.array_equal(known.estimate, instance.requests.output_tokens)
    value = "planned" if planned else objective.partition(",")[0].replace("goodput", "misses")
    heading = f"{'seconds':>9}  {value:>16}  {'bound':>10}  {'gap':>8}  by"
    if not sys.stderr.isatty():
        say(heading)
        yield lambda step: say(_line(step))
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    console.print(heading, style="bold")
    with Live(_Clock(time_limit_s), console=console, refresh_per_second=4, transient=True):
        yield lambda step: console.print(_line(step), markup=False)
    console.print()


class _Clock:
    """The line that moves on a terminal: how much of the time is over."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s, self.start = limit_s, time.monotonic()

    def __rich__(self) -> str:
        return (
            f"{time.monotonic() - self.start:9.2f}  of {self.limit_s:g} s; Ctrl-C ends with the best so far"
        )


def _line(step: Progress) -> str:
    return (
        f"{step.seconds:9.2f}  {shown(step.primal):>16}  {shown(step.dual):>10}  "
        f"{_percent(_gap(step.primal, step.dual)):>8}  {step.source}"
    )


def _gap(primal: float | None, dual: float | None) -> float | None:
    from optimizer.problem.gap import gap

    # A value planned with guessed lengths may be better than the truth allows.
    return None if primal is None or dual is None or dual > primal else gap(primal, dual)


def deliver(
    result: Result,
    outputs: Outputs,
    folder: Path,
    *,
    source: Path,
    about: Mapping[str, Any],
    card: EngineCard | None = None,
) -> None:
    """Write the files of a result and print it; raise the exit code where it is not 0.

    Parameters
    ----------
    result
        What `solve` gave.
    outputs, folder
        Where files go.
    source
        The input, which is not written over.
    about
        Where the requests come from, for the JSON document.
    card
        The engine's card, where it is none of the catalogue.
    """
    # Files first: a pipe that closes early must not cost them.
    written = _write(result, outputs, folder, source, about, card)
    _show(result, card)
    for parent in dict.fromkeys(path.parent for path in written.values()):
        names = ", ".join(path.name for path in written.values() if path.parent == parent)
        say(f"wrote {parent / names}")
    say(f"to check: optimizer check {written['schedule']} --instance {written.get('instance', source)}")
    if outputs.plan is not None and result.plan is None:
        say(f"no plan to write: the best schedule is that of the policy {result.found_by}")
    if not result.check.ok:
        raise typer.Exit(ANSWER_IS_NO)
    if result.limit == "interrupted":
        raise typer.Exit(INTERRUPTED)


def _write(
    result: Result,
    outputs: Outputs,
    folder: Path,
    source: Path,
    about: Mapping[str, Any],
    card: EngineCard | None,
) -> dict[str, Path]:
    """Write everything, the picture last: nothing else may depend on whether it can be drawn."""
    from importlib.util import find_spec

    from optimizer.report.card import describe_engine

    instance, schedule = result.instance, result.simulation.schedule
    written = {}

    def place(name: str, default: str, asked: Path | None) -> Path:
        written[name] = asked or make_folder(folder) / default
        return written[name]

    schedule.write(place("schedule", "schedule.json", outputs.schedule))
    if outputs.instance_out or (folder / "instance.json").resolve() != source.resolve():
        instance.write(place("instance", "instance.json", outputs.instance_out))
    if result.certificate is not None:
        write_json(place("certificate", "certificate.json", outputs.certificate), result.certificate)
    if outputs.plan is not None and result.plan is not None:
        written["plan"] = outputs.plan
        result.plan.write(outputs.plan)
    engine = describe_engine(instance.engine, schedule, card)
    write_json(place("json", "solve.json", outputs.json), {**result.to_document(), "engine": engine, **about})
    if outputs.plot is not None or find_spec("matplotlib") is not None:
        from optimizer.report.plot import save
        from optimizer.report.solve_plot import plot_result

        save(plot_result(result), place("plot", "picture.png", outputs.plot))
    return written


def _show(result: Result, card: EngineCard | None) -> None:
    from optimizer.report.card import describe_engine, trust, warning
    from optimizer.report.table import figure, two_columns

    r, simulation = result, result.simulation
    first, *second = r.objective.split(",")
    metrics, engine = simulation.metrics, describe_engine(r.instance.engine, simulation.schedule, card)
    caution = warning(engine)
    pairs = [
        ("baseline", f"{_value(r.baseline, first)} ({r.baseline_policy})"),
        ("best policy", f"{_value(r.heuristic, first)} ({r.heuristic_policy})"),
        ("schedule", f"{_value(r.primal, first)} ({r.found_by}): {_better(r.primal, r.baseline)} the baseline, "
         f"{_better(r.primal, r.heuristic)} the best policy"),
        *((name, _value(r.second, name)) for name in second),
        ("bound", "none is known" if r.dual is None else f"{_value(r.dual, first)} ({r.bound_by}): no schedule is below it"),
        *([("certified", f"{_value(r.certified, first)}: so much the certificate proves; the rest is the word of {r.bound_by}")]
          if r.certified is not None and r.certified != r.dual else []),
        ("gap", "not known" if r.gap is None else f"{_percent(r.gap)}: so far from optimal at most"),
        *([("slippage", _slippage(r, first))] if r.claimed is not None else []),
        ("checked", str(r.check).partition("\n")[0]),
        ("stopped", f"{_WHY[r.limit]}, after {r.seconds:.1f} of {r.time_limit_s:g} s"),
        ("preemptions", f"{int(metrics.preemptions.sum()):,}"),
        ("KV cache used", f"{figure(metrics.kv_use_mean, 100)} % on average, {figure(metrics.kv_use_peak, 100)} % at most"),
        ("step times", trust(engine)),
        *([("warning", caution)] if caution else []),
    ]  # fmt: skip
    print(two_columns(pairs, terminal_width()))
    if not r.check.ok:
        print(f"\n{r.check}")


def _value(value: float | None, objective: str) -> str:
    from optimizer.offline.objective import UNITS

    return f"{_percent(value) if objective == 'goodput' else shown(value)} {UNITS[objective]}"


def _better(value: float, other: float) -> str:
    if value == other:
        return "equal to"
    side = "below" if value < other else "ABOVE"
    return f"{_percent(abs(other - value) / other)} {side}" if other else side


def _slippage(result: Result, objective: str) -> str:
    off = result.slippage or 0.0
    if abs(off) <= _ROUND_OFF * abs(result.primal):
        return "none: executed, it is worth what it was thought to be worth"
    said = f"{'-' if off < 0 else '+'}{_value(abs(off), objective)}"
    return f"{said}: before it was executed it was thought to be worth {_value(result.claimed, objective)}"


def shown(value: float | None) -> str:
    """Show a value with six significant digits; unknown is a dash.

    >>> shown(78.83736), shown(26.0), shown(1234.5678), shown(None)
    ('78.8374', '26', '1,234.57', '-')
    """
    if value is None:
        return "-"
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"

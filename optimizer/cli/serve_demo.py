"""`optimizer serve-demo`: the online loop against a simulated engine, live."""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optimizer.cli.command import command
from optimizer.cli.options import whole
from optimizer.cli.output import check_outputs, say, write_json
from optimizer.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from optimizer.online import Stats
    from optimizer.online.simulated import SimulatedServer

Load = tuple[int, int, float]
"""How many wait, how many run, and the share of the KV cache that they hold."""
_FRAME_S = 0.1
_HISTORY = 36
_LINES = 20
_MOST_REQUESTS = 10**6
_LEVELS = " ▁▂▃▄▅▆▇█"


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "serve-demo",
        examples=(
            "optimizer serve-demo",
            "optimizer serve-demo --family chat --engine llama3.1-8b@h200 --rate 60 --speed 2",
            "optimizer serve-demo --objective throughput --rate 12 --duration 300 --speed 0 --json stats.json",
        ),
    )(serve_demo)


def serve_demo(
    family: Annotated[
        str, typer.Option("--family", metavar="NAME", help="Law of the lengths, as in optimizer generate.")
    ] = "gsm8k-like",
    engine: Annotated[
        str, typer.Option("--engine", metavar="LLM@GPU", help="Engine; optimizer engines lists them.")
    ] = "llama-65b-fp8@h200",
    rate: Annotated[float, typer.Option("--rate", metavar="REQ/S", help="Mean arrivals per second.")] = 12.0,
    duration: Annotated[
        float, typer.Option("--duration", metavar="S", help="Seconds of the engine after which the demo ends.")
    ] = 30.0,
    objective: Annotated[
        str, typer.Option("--objective", metavar="O", help="latency, throughput, goodput or fair.")
    ] = "latency",
    noise: Annotated[
        float,
        typer.Option("--noise", metavar="SIGMA", help="Predictions of lengths are off by a log-normal factor of this "
                     "sigma; 0: nothing is predicted."),
    ] = 0.5,
    speed: Annotated[
        float,
        typer.Option("--speed", metavar="FACTOR", help="Seconds of the engine per second; 0: as fast as it goes."),
    ] = 1.0,
    solver: Annotated[
        bool, typer.Option("--solver/--no-solver", help="Improve plans in a background process.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", callback=whole(0), metavar="N", help="Of all draws.")] = 0,
    json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the statistics of the loop.")
    ] = None,
) -> None:  # fmt: skip
    """Serve a drawn workload with the online loop, and watch queue, batch, KV cache and latency.

    The engine is simulated: a step takes as long as the engine's card says, in real time or `--speed` times as fast. The
    loop is the one that a server would run; its solver works in a process of its own and in real time. On a terminal the
    picture is live, elsewhere a line is printed now and then. "Answers" says what composed the steps: the solver's
    plan while it is fresh or stale, the heuristic otherwise.
    """
    for name, number, least in (
        ("rate", rate, None),
        ("duration", duration, None),
        ("speed", speed, 0.0),
        ("noise", noise, 0.0),
    ):
        if not math.isfinite(number) or (number <= 0 if least is None else number < least):
            raise InputError(f"{number!r}; expected a number {'>' if least is None else '>='} 0", field=name)
    most = rate * duration
    if most > _MOST_REQUESTS:
        raise InputError(
            f"{duration!r} s at {rate!r} per second; expected at most {_MOST_REQUESTS:,} requests",
            field="duration",
        )
    check_outputs([json], folder=None, source=Path())

    from optimizer.capacity import engine as engine_of
    from optimizer.online import RollingHorizon
    from optimizer.online.simulated import SimulatedEngine, SimulatedServer
    from optimizer.problem import with_knowledge
    from optimizer.traces import generate

    # More than are expected within the time; who would come later does not come.
    requests = generate(family, math.ceil(most + 5 * math.sqrt(most) + 10), seed, rate=rate)
    if noise:
        requests = with_knowledge(requests, f"noise:{noise}", seed=seed)
    card = engine_of(engine)
    with RollingHorizon(card, objective, solver="process" if solver else None) as horizon:  # type: ignore[arg-type]
        server = SimulatedServer(horizon, SimulatedEngine(card), requests, duration, speed)
        title = f"{family} requests at {rate:g} per second for {duration:g} s, {engine}, {objective}"
        if sys.stdout.isatty():
            _live(server, title)
        else:
            print(title, flush=True)
            _lines(server)
        stats = horizon.stats()
    _summary(server, stats, title if sys.stdout.isatty() else "")
    if json is not None:
        write_json(
            json, {"schema": "optimizer/serve-demo@1", **server.figures(), "stats": stats.to_document()}
        )
        say(f"wrote {json}")


def _live(server: SimulatedServer, title: str) -> None:
    from rich.live import Live

    history: deque[Load] = deque(maxlen=_HISTORY)
    with Live(_view(server, history, title), auto_refresh=False, transient=True) as live:
        shown = 0.0

        def frame() -> None:
            nonlocal shown
            if time.monotonic() - shown >= _FRAME_S:
                shown = time.monotonic()
                history.append(server.horizon.load())
                live.update(_view(server, history, title), refresh=True)

        server.run(frame)


def _lines(server: SimulatedServer) -> None:
    every_s = server.duration_s / _LINES
    due = every_s

    def frame() -> None:
        nonlocal due
        if server.now_s >= due:
            due += every_s * math.ceil((server.now_s - due) / every_s + 1e-9)
            waiting, running, share = server.horizon.load()
            figures = server.figures()
            latency = "" if not server.latency_s else (
                f"  latency mean {figures['latency_mean_s']:6.2f} s  TTFT mean {figures['ttft_mean_s']:6.2f} s")  # fmt: skip
            print(
                f"{server.now_s:8.1f} s  {waiting:5} wait  {running:4} run  KV {share:4.0%}  "
                f"{figures['finished']:6} done{latency}",
                flush=True,
            )

    server.run(frame)


def _view(server: SimulatedServer, history: Collection[Load], title: str) -> RenderableType:
    from rich.panel import Panel
    from rich.table import Table

    stats = server.horizon.stats()
    engine = server.horizon.engine
    step, table = server.step, Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    waiting = [w for w, _, _ in history]
    table.add_row("queue", _spark(waiting, max([1, *waiting])), f"{stats.waiting:,} wait")
    table.add_row(
        "batch", _spark([r for _, r, _ in history], engine.max_num_seqs), f"{stats.running} of {engine.max_num_seqs} seats"
    )  # fmt: skip
    table.add_row(
        "KV cache",
        _spark([s for _, _, s in history], 1.0),
        f"{stats.kv_share:.0%} of {engine.kv_blocks:,} blocks",
    )
    if step is not None:
        prompts = sum(tokens for _, tokens in step.prefill)
        table.add_row("step", f"{prompts:,} prompt tokens, {len(step.decode)} decodes", f"by {step.source}")
    figures = server.figures()
    if server.latency_s:
        table.add_row("latency", f"mean {figures['latency_mean_s']:.2f} s, p99 {figures['latency_p99_s']:.2f} s",
                      f"TTFT {figures['ttft_mean_s']:.2f} s")  # fmt: skip
    table.add_row(
        "done",
        f"{len(server.latency_s):,} requests",
        f"{stats.counts.preemptions} preemptions",
    )
    p50, p99 = stats.next_step_us["p50"] or 0.0, stats.next_step_us["p99"] or 0.0
    table.add_row("loop", f"next_step {p50:.0f} µs, p99 {p99:.0f} µs", _answers(stats.counts.steps))
    solver = stats.solver
    took = "" if solver.mean_s is None else f", {solver.mean_s:.2f} s each"
    table.add_row("solver", f"{solver.state}: {solver.answers} plans{took}", f"{stats.counts.plans} adopted")
    return Panel(table, title=title, subtitle=f"{server.now_s:.1f} s")


def _spark(values: list[int] | list[float], most: float) -> str:
    """Draw values as a row of bars.

    >>> _spark([0, 1, 2], 2.0).strip()
    '▄█'
    """
    steps = len(_LEVELS) - 1
    return "".join(_LEVELS[min(steps, round(steps * v / most))] for v in values).rjust(_HISTORY)


def _answers(steps: dict[Any, int]) -> str:
    total = sum(count for source, count in steps.items() if source != "idle") or 1
    return ", ".join(f"{source} {count / total:.0%}" for source, count in steps.items() if source != "idle")


def _summary(server: SimulatedServer, stats: Stats, title: str) -> None:
    from optimizer.report.table import two_columns

    figures, solver = server.figures(), stats.solver

    def seconds(name: str) -> str:
        if not server.latency_s:
            return "-"
        numbers = (f"{label} {figures[f'{name}_{label}_s']:.3f} s" for label in ("mean", "p50", "p99"))
        return ", ".join(numbers)

    if title:
        print(title)
    print()
    print(two_columns([
        ("served", f"{figures['finished']:,} requests in {figures['engine_s']:.1f} s of the engine; "
                   f"{stats.running} run, {stats.waiting:,} wait"),
        ("preemptions", str(stats.counts.preemptions)),
        ("TTFT", seconds("ttft")),
        ("latency", seconds("latency")),
        ("answers", _answers(stats.counts.steps)),
        ("next_step", f"p50 {stats.next_step_us['p50'] or 0:.0f} µs, p99 {stats.next_step_us['p99'] or 0:.0f} µs"),
        ("solver", f"{solver.answers} plans of {solver.solves} windows, {stats.counts.plans} adopted"),
    ], None))  # fmt: skip

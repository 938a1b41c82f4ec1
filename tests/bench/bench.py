"""`make bench`, or `python -m tests.bench.bench`: how fast, against the targets and the clock of the same run.

Everything is measured in fresh processes, one at a time, on one core where the system can pin. Beside each
figure stands the clock (`clock.py`): events per second of a fixed loop of plain Python, read before and after.
On a slow or busy machine the clock is slow too; `in clock events` is what remains when that is divided out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.bench.machine import Failed, Machine
from tests.bench.measures import Bench, growth, headline, policies, starts
from tests.bench.rival import Rival
from tests.bench.table import Row, render

PARTS = ("headline", "policies", "growth", "starts")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and give the exit code: 1 if something could not be measured, whatever the figures."""
    asked = _parser().parse_args(arguments)
    try:
        machine = Machine(asked.core)
        with tempfile.TemporaryDirectory(prefix="optimizer-bench-") as folder:
            tables, notes = _measure(asked, machine, Path(folder))
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    facts = _facts(machine)
    print(_head(facts))
    for title, rows in tables.items():
        print(f"\n{'### ' * asked.markdown}{title}\n\n{render(rows, markdown=asked.markdown)}")
    for note in notes:
        print(f"\nnot measured: {note}")
    if asked.json is not None:
        document = {
            "schema": "optimizer/bench@1",
            **facts,
            "tables": {title: [row.document() for row in rows] for title, rows in tables.items()},
            "not_measured": notes,
        }
        asked.json.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if notes else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer runs, and no million requests")
    parser.add_argument(
        "--only", choices=PARTS, action="append", help="measure this part; may be given again"
    )
    parser.add_argument("--requests", type=_count, default=10_000, help="of the first rows; default 10,000")
    parser.add_argument(
        "--runs", type=_count, help="of everything; default 7 of the short, 3 of every policy, 2 of the long"
    )
    parser.add_argument("--core", type=int, help="the core to measure on; default: the last one")
    parser.add_argument(
        "--rival-python", type=Path, metavar="PATH", help="a Python that has ai-dynamo==1.4.2"
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--json", type=_new_file, metavar="FILE", help="also write every single measurement")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number >= 1")
    return int(text)


def _new_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder, or lies in none")
    return path


def _measure(
    asked: argparse.Namespace, machine: Machine, folder: Path
) -> tuple[dict[str, list[Row]], list[str]]:
    n, quick = asked.requests, asked.quick
    sizes = (n, 10 * n) if quick else (n, 10 * n, 100 * n)
    wanted = asked.only or PARTS
    print("writing the requests", file=sys.stderr, flush=True)
    files = sizes if "growth" in wanted else ()
    command = [sys.executable, "-m", "tests.bench.workload", str(folder), str(n), *map(str, files)]
    bench = Bench(
        machine,
        folder,
        json.loads(machine.run(command).output),
        runs=asked.runs or (3 if quick else 7),
        policy_runs=asked.runs or (1 if quick else 3),
        growth_runs=asked.runs or (1 if quick else 2),
        start_runs=asked.runs or (3 if quick else 7),
        growth=sizes,
    )
    rival = None if asked.rival_python is None else Rival.find(machine, asked.rival_python)
    table: list[Row] = []
    tables = {"How fast": table}
    notes: list[str] = []

    def measure_policies() -> list[Row]:
        rows, failed = policies(bench)
        tables["Every policy on the same requests, in the loop"] = rows
        notes.extend(failed)
        return [replace(row, what=f"the slowest policy on the same, {row.what}") for row in rows[:1]]

    parts: dict[str, Callable[[], list[Row]]] = {
        "headline": lambda: headline(bench, rival),
        "policies": measure_policies,
        "growth": lambda: growth(bench),
        "starts": lambda: starts(bench),
    }
    try:
        for name in wanted:
            try:
                table += parts[name]()
            except Failed as failure:
                notes.append(f"{name}: {failure}")
    except KeyboardInterrupt:
        notes.append("interrupted; what is finished stands above")
    return {title: rows for title, rows in tables.items() if rows}, notes


def _facts(machine: Machine) -> dict[str, Any]:
    return {
        "clock_events_per_second": statistics.median(machine.clock),
        "clock_least": min(machine.clock),
        "clock_most": max(machine.clock),
        "clock_readings": len(machine.clock),
        "measured_processes": machine.runs,
        "repeated_because_disturbed": machine.repeated,
        "still_disturbed": machine.disturbed,
        "pinned": machine.core is not None,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"


def _head(facts: dict[str, Any]) -> str:
    clock = f"{facts['clock_events_per_second'] / 1e6:.2f} million events/s"
    span = f"{facts['clock_least'] / 1e6:.2f} to {facts['clock_most'] / 1e6:.2f}"
    disturbed = (
        f"{facts['measured_processes']} processes measured, {facts['still_disturbed']} of them while others took "
        f"the core ({facts['repeated_because_disturbed']} runs repeated for that)"
    )
    pinned = "one core" if facts["pinned"] else "not pinned to a core"
    return (
        f"clock of this run: {clock} (median of {facts['clock_readings']}; {span})\n"
        f"{disturbed}\n"
        f"{facts['cpu']}, {facts['cores']} cores, {pinned}; {facts['system']}, Python {facts['python']}"
    )


if __name__ == "__main__":
    sys.exit(main())

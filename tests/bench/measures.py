"""What is measured: each function gives rows."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bench.machine import Failed, Machine, Took
from tests.bench.rival import SETTINGS, Rival
from tests.bench.table import Row, Sample

LIMITS = ("--engine", "llama3.1-8b@h200", "--max-num-batched-tokens", "512", "--max-num-seqs", "512")


@dataclass(frozen=True, slots=True)
class Bench:
    """Where and what to measure.

    Attributes
    ----------
    machine
        The core.
    folder
        For the requests and what the commands write.
    facts
        Of the requests: `name`, `requests`, tokens.
    runs, policy_runs, growth_runs, start_runs
        How often each is measured.
    growth
        Numbers of requests; the first one is the base.
    started
        For the progress.
    """

    machine: Machine
    folder: Path
    facts: dict[str, Any]
    runs: int
    policy_runs: int
    growth_runs: int
    start_runs: int
    growth: tuple[int, ...]
    started: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Tell the progress."""
        print(f"[{time.monotonic() - self.started:4.0f} s] {text}", file=sys.stderr, flush=True)

    def simulate(
        self, trace: str = "first.csv", *options: str, policy: str = "vllm-v1"
    ) -> tuple[Took, dict[str, Any]]:
        """Run `optimizer simulate` as a user does, files written; give what it took and its summary."""
        summary = self.folder / "summary.json"
        took = self.machine.run(
            [sys.executable, "-m", "optimizer", "simulate", self.folder / trace, *LIMITS, "--lengths", "exact",
             "--policy", policy, "--out", self.folder, "--json", summary, *options],
            result=summary,
        )  # fmt: skip
        return took, json.loads(took.result)


Ran = tuple[Took, dict[str, Any]]


def _walls(ran: Sequence[Ran]) -> Sample:
    return Sample(tuple(took.wall_s for took, _ in ran), _clocks(ran))


def _peaks(ran: Sequence[Ran]) -> Sample:
    return Sample(tuple(took.peak_mb for took, _ in ran), _clocks(ran))


def _speeds(ran: Sequence[Ran]) -> Sample:
    return Sample(tuple(s["requests"] / s["loop_seconds"] for _, s in ran), _clocks(ran))


def _costs(ran: Sequence[Ran]) -> Sample:
    """Give the loop's seconds per request, less the share of them that others had the core.

    Long runs are disturbed more often than short ones: without that they would seem to be slower.
    """
    costs = tuple(s["loop_seconds"] / s["requests"] * min(1.0, took.share) for took, s in ran)
    return Sample(costs, _clocks(ran))


def _clocks(ran: Sequence[Ran]) -> tuple[float, ...]:
    return tuple(took.clock for took, _ in ran)


def headline(bench: Bench, rival: Rival | None) -> list[Row]:
    """Measure vllm-v1 on the first requests, and the rival in turns with it."""
    ours: list[Ran] = []
    theirs: list[tuple[Took, float]] = []
    for number in range(bench.runs):
        bench.say(f"vllm-v1{' and the rival' if rival else ''}, {number + 1} of {bench.runs}")
        ours.append(bench.simulate())
        if rival:
            trace, limits = bench.folder / "first.jsonl", ours[-1][1]["limits"]
            theirs.append(rival.replay(bench.machine, trace, limits, bench.folder))
    requests = bench.facts["requests"]
    name = f"{requests:,} requests of {bench.facts['name']}, vllm-v1"
    rows = [
        Row(f"{name}: in the loop", "requests/s", _speeds(ours), at_least=100_000),
        Row(f"{name}: whole process, files written", "s", _walls(ours)),
        Row(f"{name}: peak memory of the process", "MB", _peaks(ours), at_most=150),
    ]
    if rival:
        clocks = tuple(took.clock for took, _ in theirs)
        name = f"ai-dynamo {rival.version}"
        loop = Sample(tuple(requests / seconds for _, seconds in theirs), clocks)
        wall = Sample(tuple(took.wall_s for took, _ in theirs), clocks)
        peak = Sample(tuple(took.peak_mb for took, _ in theirs), clocks)
        rows += [
            Row(f"{name}, by its own wall time ({SETTINGS})", "requests/s", loop),
            Row(f"{name}: whole process", "s", wall),
            Row(f"{name}: peak memory", "MB", peak),
            Row("times as fast as ai-dynamo: in the loop", "x", _ratio(rows[0].sample, loop), at_least=1),
            Row("times as fast as ai-dynamo: whole process", "x", _ratio(wall, rows[1].sample), at_least=1),
        ]
    return rows


def _ratio(above: Sample, below: Sample) -> Sample:
    """Divide run by run, each by its neighbour in time."""
    pairs = zip(above.values, below.values, strict=True)
    return Sample(tuple(a / b for a, b in pairs), above.clocks)


def policies(bench: Bench) -> tuple[list[Row], list[str]]:
    """Measure every policy on the same requests, in rounds; give the rows, the slowest first, and what failed."""
    ask = "from optimizer import policy_names; print(*policy_names())"
    names = bench.machine.run([sys.executable, "-c", ask]).output.split()
    ran: dict[str, list[Ran]] = {name: [] for name in names}
    failures: dict[str, str] = {}
    for number in range(bench.policy_runs):
        for name in names:
            if name in failures:
                continue
            bench.say(f"policies: {name}, {number + 1} of {bench.policy_runs}")
            try:
                ran[name].append(bench.simulate(policy=name))
            except Failed as failure:
                failures[name] = str(failure)
    rows = [
        Row(name, "requests/s", _speeds(runs), at_least=20_000)
        for name, runs in ran.items()
        if name not in failures
    ]
    rows.sort(key=lambda row: row.sample.median)
    return rows, [f"{name}: {text}" for name, text in failures.items()]


def growth(bench: Bench) -> list[Row]:
    """Measure how time per request and memory grow with the number of requests."""
    base, *larger = bench.growth
    ran: dict[int, list[Ran]] = {size: [] for size in bench.growth}
    for number in range(bench.growth_runs):
        for size in larger:
            for asked in (base, size, base):
                bench.say(f"growth: {asked:,} requests, {number + 1} of {bench.growth_runs}")
                ran[asked].append(bench.simulate(f"{asked}.csv"))
    at_base = _costs(ran[base]).median
    rows = []
    for size in bench.growth:
        speeds = _speeds(ran[size])
        name = f"{size:,} requests" + (", the same repeated" if size != base else "")
        if size != base:
            slower = Sample(tuple(cost / at_base for cost in _costs(ran[size]).values), speeds.clocks)
            rows.append(Row(f"{name}: loop time per request to that of {base:,}", "x", slower, at_most=1.2))
        rows += [
            Row(f"{name}: in the loop", "requests/s", speeds),
            Row(f"{name}: whole process, files written", "s", _walls(ran[size])),
            Row(f"{name}: peak memory", "MB", _peaks(ran[size])),
        ]
    return rows


def starts(bench: Bench) -> list[Row]:
    """Measure what a user waits for before anything is simulated, and until a first result."""
    few = min(1000, bench.facts["requests"])
    python = [sys.executable]
    commands: dict[str, tuple[Sequence[str], float | None]] = {
        "an empty Python process": ([*python, "-c", "pass"], None),
        "import optimizer": ([*python, "-c", "import optimizer"], 0.2),
        "from optimizer import read_trace, engine, simulate": (
            [*python, "-c", "from optimizer import read_trace, engine, simulate"],
            None,
        ),
        "optimizer --help": ([*python, "-m", "optimizer", "--help"], 0.6),
    }
    ran: dict[str, list[Ran]] = {name: [] for name in commands}
    first: list[Ran] = []
    for number in range(bench.start_runs):
        bench.say(f"starts, {number + 1} of {bench.start_runs}")
        for name, (command, _) in commands.items():
            ran[name].append((bench.machine.run(command), {}))
        first.append(bench.simulate("first.csv", "--count", str(few)))
    rows = [
        Row(f"{name}: whole process", "s", _walls(ran[name]), at_most=most)
        for name, (_, most) in commands.items()
    ]
    result = f"optimizer simulate, {few:,} requests: whole process until the result"
    return [*rows, Row(result, "s", _walls(first), at_most=1.5)]

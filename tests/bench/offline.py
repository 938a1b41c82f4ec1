"""`make bench-offline`, or `python -m tests.bench.offline`: how good offline solves are, row by row of the README's table.

Each instance is solved with the time limit of its row; a solve that reaches the gap that its row asks for ends earlier. Without
`--full` only the first instances of each row are solved, enough to see whether something broke.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from optimizer.offline import Progress, Result, solve
from optimizer.problem import Instance, with_knowledge
from optimizer.problem.utilisation import decode_utilisation
from optimizer.simulator import simulate

NOISE = "noise:0.5"
_CLIENTS = 200


@dataclass(frozen=True)
class Bench:
    """A row: what is solved, and what is said of it."""

    title: str
    names: tuple[str, ...]
    quick: int
    time_limit_s: float
    measure: Callable[[str, float], dict[str, Any]]
    say: Callable[[list[dict[str, Any]]], str]
    reach: str


def _instance(name: str) -> Instance:
    from optimizer.traces import instance

    return instance(name)


def _solved(result: Result) -> dict[str, Any]:
    return {
        "value": result.primal, "bound": result.dual, "gap": result.gap, "heuristic": result.heuristic,
        "baseline": result.baseline, "limit": result.limit, "seconds": result.seconds, "checked": result.check.ok,
        "preemptions": int(result.simulation.metrics.preemptions.sum()),
    }  # fmt: skip


def plain(name: str, limit_s: float) -> dict[str, Any]:
    """Solve an instance of the catalogue."""
    return _solved(solve(_instance(name), time_limit_s=limit_s))


def clients(name: str, limit_s: float) -> dict[str, Any]:
    """Solve a case of the paper's setting with known lengths."""
    result = solve(_instance(name), time_limit_s=limit_s, gap=5e-4)
    used = decode_utilisation(result.simulation.schedule, _CLIENTS)
    fcfs = simulate(_instance(name), "vllm-v1")
    return _solved(result) | {
        "utilisation": used,
        "fcfs_utilisation": decode_utilisation(fcfs.schedule, _CLIENTS),
    }


def noisy(name: str, limit_s: float) -> dict[str, Any]:
    """Solve a case whose lengths are predicted; longest first and first come first served see the same predictions."""
    exact = _instance(name)
    seed = int(name.rsplit("-", 1)[1])
    case = Instance(exact.name, with_knowledge(exact.requests, NOISE, seed=seed), exact.engine, "makespan")
    result = solve(case, time_limit_s=limit_s, gap=5e-4)
    found = {}
    for policy in ("lpt", "vllm-v1"):
        ran = simulate(case, policy)
        found[policy] = (ran.metrics.makespan_s, decode_utilisation(ran.schedule, _CLIENTS))
    return _solved(result) | {
        "utilisation": decode_utilisation(result.simulation.schedule, _CLIENTS),
        "lpt": found["lpt"][0], "lpt_utilisation": found["lpt"][1], "fcfs_utilisation": found["vllm-v1"][1],
    }  # fmt: skip


def against_mc_sf(name: str, limit_s: float) -> dict[str, Any]:
    """Solve small ramps, beside MC-SF."""
    return plain(name, limit_s) | {"mc_sf": float(simulate(_instance(name), "mc-sf").metrics.e2e_s.mean())}


def measured_run(_: str, limit_s: float) -> dict[str, Any]:
    """Solve the run of LLaMA-65B that was measured on the H200, all requests at once."""
    from optimizer.capacity import engine
    from optimizer.validation.runs import read_run

    beside = Path(__file__).resolve().parents[3] / "shared"
    shared = Path(os.environ.get("OPTIMIZER_SHARED") or beside) / "h200"
    path = shared / "run-llama-65b-fp8-gsm8k-s200.json"
    if not path.is_file():
        sys.exit(f"needs the measured run: {path} is not there, and OPTIMIZER_SHARED names no other folder")
    run = read_run(path)
    requests = run.requests.replace(arrival_s=np.zeros(len(run.requests)))
    card = engine("llama-65b-fp8@h200", max_num_seqs=200)
    result = solve(Instance("h200-run", requests, card, "makespan"), time_limit_s=limit_s)
    return _solved(result) | {"measured": run.wall_s}


def many(_: str, limit_s: float) -> dict[str, Any]:
    """Solve 10,000 chats, and see when the first answer is there."""
    first: list[float] = []

    def seen(progress: Progress) -> None:
        if progress.primal is not None and not first:
            first.append(progress.seconds)

    case = _instance("large/" + next(n for n in _names("large/")).partition("/")[2])
    result = solve(case, time_limit_s=limit_s, on_progress=seen)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _solved(result) | {"first_s": first[0], "memory_mb": kib / 1000}


def _names(start: str) -> Iterator[str]:
    from optimizer.traces import list_instances

    return (name for name in list_instances() if name.startswith(start))


def _ratio(rows: list[dict[str, Any]]) -> str:
    worst = max(row["value"] / row["heuristic"] for row in rows)
    return (
        f"value / bound {mean(row['value'] / row['bound'] for row in rows):.3f}; "
        f"{1 - mean(row['value'] / row['heuristic'] for row in rows):.1%} below the best heuristic (at least {1 - worst:.1%})"
    )


def _small(rows: list[dict[str, Any]]) -> str:
    proved = sum(row["limit"] == "optimal" for row in rows)
    return (
        f"{1 - mean(row['value'] / row['mc_sf'] for row in rows):.1%} below MC-SF; "
        f"bound / value {mean(row['bound'] / row['value'] for row in rows):.3f}; {proved} of {len(rows)} proved optimal, "
        f"longest {max(row['seconds'] for row in rows):.0f} s"
    )


def rows() -> list[Bench]:
    """Give every row of the table."""
    cases = tuple(f"gsm8k/paper-200-case-{seed}" for seed in range(100))
    return [
        Bench(
            "gsm8k, paper preset, lengths known", cases, 3, 20, clients,
            lambda r: f"mean gap {mean(x['gap'] for x in r):.2%}, utilisation {mean(x['utilisation'] for x in r):.1%} "
            f"(FCFS {mean(x['fcfs_utilisation'] for x in r):.1%}), longest {max(x['seconds'] for x in r):.0f} s",
            "gap 1.0 %, utilisation 97 %, 20 s",
        ),
        Bench(
            "the same, lengths predicted with log-noise 0.5", cases, 3, 20, noisy,
            lambda r: f"makespan {1 - mean(x['value'] / x['lpt'] for x in r):.2%} below LPT on the same predictions; utilisation "
            f"{mean(x['utilisation'] for x in r):.1%} (LPT {mean(x['lpt_utilisation'] for x in r):.1%}, "
            f"FCFS {mean(x['fcfs_utilisation'] for x in r):.1%})",
            "better than LPT, and 8.0 points of utilisation over FCFS",
        ),
        *(
            Bench(f"kv-ramps n = {n}", tuple(_names(f"kv-ramps/n{n}-"))[:10], 1, limit, against_mc_sf, _small, reach)
            for n, limit, reach in (
                (16, 120, "all proved"),
                (30, 60, "6 % below MC-SF, bound / value 0.80"),
                (50, 60, "6 % below MC-SF, bound / value 0.80"),
            )
        ),
        *(
            Bench(f"{family}, total latency", tuple(_names(f"{family}/")), 1, 60, plain, _ratio, reach)
            for family, reach in (("chat", "1.15"), ("mixed-long", "1.08"), ("gsm8k-like", "1.20"))
        ),
        Bench(
            "llama-65b-fp8@h200, the measured run of 700 requests", ("h200-run",), 1, 60, measured_run,
            lambda r: f"{r[0]['value']:.2f} s, bound {r[0]['bound']:.2f} s (gap {r[0]['gap']:.1%}), {r[0]['preemptions']} "
            f"preemptions; the engine itself: {r[0]['measured']:.2f} s",
            "3 %, no preemption",
        ),
        Bench(
            "10,000 requests", ("large",), 1, 60, many,
            lambda r: f"first answer after {r[0]['first_s']:.2f} s; value / bound {r[0]['value'] / r[0]['bound']:.3f}; "
            f"{1 - r[0]['value'] / r[0]['heuristic']:.1%} below the best heuristic; {r[0]['memory_mb']:,.0f} MB",
            "1 s, improved until 60 s, 1 GB",
        ),
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Solve and print the table; with `--json` also what each instance gave, updated after each of them."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.offline", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--full", action="store_true", help="every instance of each row (some two hours)")
    parser.add_argument("--count", type=int, help="so many instances of each row, instead")
    parser.add_argument("--only", default="", help="rows whose title contains this")
    parser.add_argument(
        "--json", type=Path, help="write what each instance gave; what is there already is not solved again"
    )
    asked = parser.parse_args(arguments)
    done: dict[str, Any] = json.loads(asked.json.read_text()) if asked.json and asked.json.is_file() else {}
    print("| instances | measured | reach |\n|---|---|---|", flush=True)
    for row in rows():
        if asked.only not in row.title:
            continue
        found = []
        count = asked.count or (len(row.names) if asked.full else row.quick)
        for name in row.names[:count]:
            key = f"{row.title}: {name}"
            if key not in done:
                began = time.monotonic()
                done[key] = row.measure(name, row.time_limit_s)
                print(f"{key}: {done[key]} ({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
                if asked.json:
                    asked.json.write_text(json.dumps(done, indent=1) + "\n")
            found.append(done[key])
        if not all(one["checked"] for one in found):
            sys.exit(f"{row.title}: a schedule breaks the rules")
        print(f"| {row.title} ({len(found)}) | {row.say(found)} | {row.reach} |", flush=True)


if __name__ == "__main__":
    main()

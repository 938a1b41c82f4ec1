"""`python -m tests.bench.online`: how good online policies are, row by row of the README's table.

Every policy that needs no exact lengths runs on the workloads of `tests.bench.online_cases`. A seed is one of errors of
the predictions; the arrivals of the traces are as they were recorded, those of GSM8K are drawn anew. Means over the seeds,
with the half-width of the 95 % confidence interval (Student's t); ratios are taken seed by seed. So the intervals of the
traces say nothing of other days: `--count 10000` takes more of each (all of conv and code) than
the limits of `horizon` were chosen on.

The **hindsight gap** of a run is 1 - bound / mean latency; no schedule can be below the bound, whatever it knows
(`optimizer bound`). The bound is far below what can be reached where many decode together, so the best schedule that was
found with all lengths known beforehand stands beside it: of `horizon`, of `svf`, and for the first
seed of an offline solve.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from optimizer.offline import solve
from optimizer.offline.bounds import work_bound
from optimizer.policies import make_policy, policy_names
from optimizer.problem import Instance
from optimizer.simulator import simulate
from tests.bench.online_cases import COUNT, TRACES, case, shared_traces, vllm_rate
from tests.bench.online_table import ERROR_CASES, ERRORS, HEURISTICS, NOISE, VARIANTS, table

LEFT_OUT = ("orca-pow2", "orca-oracle", "fcfs", "rolling-horizon")
"""Two need exact lengths; `fcfs` is `vllm-v1`; `rolling-horizon` takes minutes a run: ask for it with `--also`."""
KEPT = (
    "e2e_mean_s", "ttft_mean_s", "ttft_p99_s", "ttft_max_s", "tpot_p99_s", "goodput_per_s", "slo_attainment", "requests_per_s",
    "preemptions",
)  # fmt: skip
SOLVE_S = 60.0


class Task(NamedTuple):
    """Runs on one instance: some policies, or `hindsight`."""

    case: str
    count: int
    lengths: str
    seed: int
    rate: float | None
    policies: tuple[str, ...]

    def key(self, policy: str) -> str:
        """Name a result."""
        return f"{self.case} {self.count} {self.lengths} {self.seed} {policy}"

    def instance(self) -> Instance:
        """Give what is run."""
        return case(self.case, self.seed, count=self.count, lengths=self.lengths, rate=self.rate)


def run(task: Task) -> dict[str, Any]:
    """Do a task; give what was measured, by key."""
    instance = task.instance()
    if task.policies == ("hindsight",):
        return {task.key("hindsight"): hindsight(instance, solves=task.seed == 0)}
    found = {}
    for name in task.policies:
        policy = make_policy("horizon", **VARIANTS[name]) if name in VARIANTS else name
        metrics = simulate(instance, policy, seed=task.seed).metrics
        summary = metrics.summary() | {"ttft_max_s": float(metrics.ttft_s.max())}
        found[task.key(name)] = {kept: summary[kept] for kept in KEPT}
    return found


def hindsight(instance: Instance, *, solves: bool) -> dict[str, Any]:
    """Bound the mean latency from below, and find a good one with all lengths known beforehand."""
    goal = Instance(instance.name, instance.requests, instance.engine, "mean-latency")
    bound = work_bound(goal, "mean-latency")
    assert bound is not None
    found = {
        name: float(simulate(instance, name).metrics.e2e_s.mean()) for name in ("horizon", "svf", "vllm-v1")
    }
    if solves:
        found["solve"] = float(solve(goal, time_limit_s=SOLVE_S).primal)
    by = min(found, key=found.__getitem__)
    return {"bound": bound.value, "best": found[by], "by": by}


def tasks(
    cases: list[str], seeds: int, count: int, policies: tuple[str, ...], done: dict[str, Any]
) -> Iterator[Task]:
    """Give all tasks; finds the saturation rates that are not known yet."""
    for name in cases:
        rate = None
        if name in TRACES:
            key = f"{name} {count} rate"
            rate = done[key] = done.get(key) or vllm_rate(name, count)
        for seed in range(seeds):
            wanted = {NOISE: policies}
            if name in ERROR_CASES:
                wanted |= {error: ("vllm-v1", *HEURISTICS, "horizon") for error in ERRORS if error != NOISE}
            for lengths, names in wanted.items():
                yield Task(name, count, lengths, seed, rate, names)
            if seed == 0 or name not in TRACES:
                yield Task(name, count, "exact", seed, rate, ("hindsight",))


def _missing(task: Task, done: dict[str, Any]) -> Task:
    return task._replace(policies=tuple(name for name in task.policies if task.key(name) not in done))


def main(arguments: list[str] | None = None) -> None:
    """Run and print the table; with `--json` also what each run gave, updated after each of them."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.online", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--full", action="store_true", help="10 seeds (some 10 minutes on one core)")
    parser.add_argument("--seeds", type=int, help="so many seeds, instead (2)")
    parser.add_argument("--count", type=int, default=COUNT, help=f"requests of each trace ({COUNT})")
    parser.add_argument("--cases", nargs="+", default=[*TRACES, "gsm8k"], choices=[*TRACES, "gsm8k"])
    parser.add_argument("--also", nargs="+", default=[], metavar="POLICY", help="more policies")
    parser.add_argument("--jobs", type=int, default=2, help="processes (2)")
    parser.add_argument(
        "--json", type=Path, help="write what each run gave; what is there already is not run again"
    )
    asked = parser.parse_args(arguments)
    if not shared_traces().is_dir() and set(asked.cases) & set(TRACES):
        sys.exit(
            f"needs the public traces: {shared_traces()} is not there, and OPTIMIZER_SHARED names no other folder"
        )
    seeds = asked.seeds or (10 if asked.full else 2)
    done: dict[str, Any] = json.loads(asked.json.read_text()) if asked.json and asked.json.is_file() else {}
    policies = (*(name for name in policy_names() if name not in LEFT_OUT), *VARIANTS, *asked.also)
    wanted = list(tasks(asked.cases, seeds, asked.count, policies, done))
    work = [task for task in (_missing(task, done) for task in wanted) if task.policies]
    began = time.monotonic()
    # Processes of their own: a solver's threads do not survive a fork.
    with multiprocessing.get_context("spawn").Pool(min(asked.jobs, max(len(work), 1))) as pool:
        for number, found in enumerate(pool.imap_unordered(run, work), start=1):
            done |= found
            if asked.json:
                asked.json.write_text(json.dumps(done, indent=1) + "\n")
            _show_progress(number, len(work), time.monotonic() - began)
    print(table(done, asked.cases, seeds, asked.count, policies))


def _show_progress(number: int, of: int, seconds: float) -> None:
    bar = "#" * math.floor(30 * number / of)
    print(
        f"\r[{bar:30}] {number}/{of}, {seconds:.0f} s",
        end="\n" if number == of else "",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()

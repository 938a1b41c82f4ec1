"""What a comparison says: a row per policy, means over seeds with their confidence, and who failed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optimizer.errors import InputError
from optimizer.report.card import trust, warning
from optimizer.report.table import Column, Table

COLUMNS = (
    Column("policy", "policy"),
    Column("output_tokens_per_s", "output", "tok/s", "high", rank=2),
    Column("requests_per_s", "served", "req/s", "high", rank=8),
    Column("makespan_s", "makespan", "s", "low", rank=4),
    Column("ttft_mean_s", "TTFT mean", "s", "low", rank=5),
    Column("ttft_p99_s", "TTFT p99", "s", "low", rank=1),
    Column("tpot_mean_s", "TPOT mean", "ms", "low", 1e3, rank=6),
    Column("tpot_p99_s", "TPOT p99", "ms", "low", 1e3, rank=1),
    Column("e2e_mean_s", "E2E mean", "s", "low", rank=1),
    Column("e2e_p99_s", "E2E p99", "s", "low", rank=4),
    Column("goodput_per_s", "goodput", "req/s", "high", rank=3),
    Column("kv_use_mean", "KV mean", "%", None, 100, rank=7),
    Column("kv_use_peak", "KV peak", "%", None, 100, rank=7),
    Column("preemptions", "preempted", "times", None, rank=3),
    Column("requests_per_second_simulated", "simulated", "req/s", None, rank=9),
)
"""Latencies: TTFT is the time to the first token, TPOT that per further token, E2E that to the last one."""

_MOST_LINES = 8
"""Of the reason of a failure, in the notes."""

_TIMED = ("requests_per_second_simulated", "loop_seconds")
# Student's t, 97.5 %, by degrees of freedom; beyond the table the normal distribution's is close enough.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """A run that gave no result, and why."""

    policy: str
    seed: int
    reason: str


@dataclass(frozen=True)
class Comparison:
    """Policies on the same requests.

    Attributes
    ----------
    runs
        A summary (`optimizer.report.summary.summarize`) for each run that finished.
    failures
        Those that did not.
    seeds
        Each policy ran once with each.
    sort
        The figure by which rows are sorted, best first.
    """

    runs: tuple[Mapping[str, Any], ...]
    failures: tuple[Failure, ...] = ()
    seeds: tuple[int, ...] = (0,)
    sort: str = "e2e_mean_s"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One row per policy: means over its seeds; `<figure>_ci` is half the 95 % confidence interval."""
        by_policy: dict[str, list[Mapping[str, Any]]] = {}
        for run in self.runs:
            by_policy.setdefault(run["policy"], []).append(run)
        rows = [_row(policy, runs, self.varies) for policy, runs in by_policy.items()]
        column = sort_column(self.sort)
        sign = -1 if column.best == "high" else 1
        return sorted(
            rows, key=lambda row: (math.inf if (v := row[column.key]) is None else sign * v, row["policy"])
        )

    @property
    def varies(self) -> bool:
        """Whether the seeds changed any figure of any policy (the speed of the simulator aside)."""
        figures = [c.key for c in COLUMNS[1:] if c.key not in _TIMED]
        seen: dict[str, list[Any]] = {}
        for run in self.runs:
            values = [run[key] for key in figures]
            if seen.setdefault(run["policy"], values) != values:
                return True
        return False

    def to_frame(self) -> Any:
        """Give the rows as a pandas DataFrame (needs the `analysis` extra)."""
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("policy")

    def table(self) -> Table:
        """Give the rows as a table, the best value of each column marked with a star."""
        by = sort_column(self.sort).key
        return Table([replace(c, rank=0) if c.key == by else c for c in COLUMNS], self.rows)

    def notes(self) -> list[str]:
        """Say what a reader of the table must know: stars, seeds, the engine, checks, failures."""
        said = ["* best of its column"] if self.runs and "*" in self.table().plain() else []
        if len(self.seeds) > 1:
            said.append(
                f"mean of {len(self.seeds)} seeds ± half the 95 % confidence interval (Student's t)"
                if self.varies
                else f"{len(self.seeds)} seeds, all with the same figures: arrivals, lengths and policies are fixed here"
            )
        said += self._about_engine()
        if self.runs and all("check" in run for run in self.runs):
            said.append("every schedule in the table was checked and keeps all rules of the engine")
        seeds: dict[tuple[str, str], list[str]] = {}
        for failure in self.failures:
            seeds.setdefault((failure.policy, failure.reason), []).append(str(failure.seed))
        for (policy, reason), of in seeds.items():
            which = f" with seed {', '.join(of)}" if len(self.seeds) > 1 else ""
            lines = reason.splitlines() or ["no reason was given"]
            more = (
                [f"  ({len(lines) - _MOST_LINES} more lines in table.json)"]
                if len(lines) > _MOST_LINES
                else []
            )
            said.append("\n".join([f"FAILED {policy}{which}: {lines[0]}", *lines[1:_MOST_LINES], *more]))
        return said

    def _about_engine(self) -> list[str]:
        """Say whose step times these are, and which run went farthest beyond what they were measured on."""
        engines = [(run["policy"], run["engine"]) for run in self.runs if "engine" in run]
        if not engines:
            return []
        said = [f"step times: {engines[0][1]['name']}, {trust(engines[0][1])}"]
        beyond = [(name, engine) for name, engine in engines if warning(engine)]
        if beyond:
            name, worst = max(beyond, key=lambda one: float(one[1]["beyond"]["share"]))
            of = "" if len(self.runs) == 1 else f" of {len(self.runs)}"
            said.append(f"warning: {len(beyond)}{of} runs went {warning(worst)} (here {name}, the farthest)")
        return said

    def __str__(self) -> str:
        return "\n".join(([self.table().plain()] if self.runs else ["no policy finished"]) + self.notes())

    def to_document(self) -> dict[str, Any]:
        """Give the JSON form: rows and failures; the runs have files of their own."""
        return {
            "schema": "optimizer/comparison@1",
            "seeds": list(self.seeds),
            "sorted_by": self.sort,
            "rows": self.rows,
            "failures": [{"policy": f.policy, "seed": f.seed, "reason": f.reason} for f in self.failures],
        }


def sort_column(key: str) -> Column:
    """Find the column to sort by.

    Raises
    ------
    InputError
        If there is none of that key.
    """
    for column in COLUMNS[1:]:
        if column.key == key.replace("-", "_"):
            return column
    raise InputError(f"{key!r} is no figure to sort by; expected one of {', '.join(c.key for c in COLUMNS[1:])}",
                     field="sort")  # fmt: skip


def _row(policy: str, runs: Sequence[Mapping[str, Any]], varies: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"policy": policy, "runs": len(runs)}
    for key in [k for k, v in runs[0].items() if _is_figure(k, v)]:
        values = [run[key] for run in runs if run.get(key) is not None]
        if not values:
            row[key] = None
        elif min(values) == max(values):
            row[key] = values[0]
        else:
            row[key] = statistics.fmean(values)
        if varies and len(values) > 1 and key not in _TIMED:
            row[f"{key}_ci"] = half_width(values)
    return row


def _is_figure(key: str, value: object) -> bool:
    return key != "seed" and (value is None or isinstance(value, int | float))


def half_width(values: Sequence[float]) -> float:
    """Give half the 95 % confidence interval of a mean, by Student's t.

    >>> round(half_width([1.0, 2.0, 3.0]), 3)
    2.484
    """
    freedom = len(values) - 1
    t = _T[freedom - 1] if freedom <= len(_T) else 1.96
    return t * statistics.stdev(values) / math.sqrt(len(values))

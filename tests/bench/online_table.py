"""The table of `tests.bench.online`: what is reached, from what the runs gave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Any

NOISE = "noise:0.5"
ERRORS = ("exact", NOISE, "noise:1", "noise:2")
"""What is known of lengths: an error of 200 % is a factor of 3, log-noise 1.1."""
ERROR_CASES = ("conv", "code", "gsm8k")
HEURISTICS = ("sjf", "srpt", "mc-sf", "svf", "sorted-f")
GOODPUT, ALL_PROTECTED = "horizon goodput", "horizon, nobody exempt"
VARIANTS: dict[str, dict[str, Any]] = {GOODPUT: {"objective": "goodput"}, ALL_PROTECTED: {"exempt": 0.0}}
"""Options of `horizon` by name."""
SLO_RIVALS = ("sarathi-serve", "past-future", "srpt", "edf")

_T = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom."""


def half_width(values: Sequence[float]) -> float:
    """Give half the width of the 95 % confidence interval of a mean; 0 for a single value.

    >>> round(half_width([1.0, 2.0, 3.0]), 2)
    2.48
    """
    if len(values) < 2:
        return 0.0
    t = _T[len(values) - 2] if len(values) - 2 < len(_T) else 2.0
    return t * stdev(values) / len(values) ** 0.5


class Runs:
    """What was measured, of one case.

    Parameters
    ----------
    done
        By key, as `tests.bench.online` writes it.
    case, count, seeds
        Which.
    also
        Further policies, shown beside.
    """

    def __init__(
        self, done: dict[str, Any], case: str, count: int, seeds: int, policies: Sequence[str]
    ) -> None:
        self._done, self.case, self._count, self._seeds = done, case, count, range(seeds)
        self.policies = policies

    def of(self, policy: str, field: str, lengths: str = NOISE) -> list[float]:
        """Give a figure of a policy, seed by seed."""
        key = f"{self.case} {self._count} {lengths}"
        return [float(self._done[f"{key} {seed} {policy}"][field]) for seed in self._seeds]

    def ratio(self, policy: str, field: str, to: str = "vllm-v1", lengths: str = NOISE) -> list[float]:
        """Give the ratio of two policies' figures, seed by seed."""
        pairs = zip(self.of(policy, field, lengths), self.of(to, field, lengths), strict=True)
        return [ours / theirs for ours, theirs in pairs]

    def best(
        self, among: Sequence[str], field: str, choose: Callable[..., str], lengths: str = NOISE
    ) -> tuple[str, float]:
        """Give the best of some policies by the mean of a figure, `min` or `max`, and that mean."""
        name = choose(among, key=lambda policy: mean(self.of(policy, field, lengths)))
        return name, mean(self.of(name, field, lengths))

    def hindsight(self, field: str) -> list[float]:
        """Give a figure of the hindsight, seed by seed; arrivals of traces are the same for all seeds."""
        found = [self._done.get(f"{self.case} {self._count} exact {seed} hindsight") for seed in self._seeds]
        return [float((one or found[0])[field]) for one in found]


def table(done: dict[str, Any], cases: Sequence[str], seeds: int, count: int, policies: Sequence[str]) -> str:
    """Give the table in Markdown.

    Parameters
    ----------
    done
        By key, as `tests.bench.online` writes it.
    cases, seeds, count, policies
        What of it: names of cases, how many seeds, requests of each trace, all policies that ran.
    """
    rows = ["| workload | figure | `horizon` | reach | met |", "|---|---|---|---|---|"]
    for case in cases:
        runs = Runs(done, case, count, seeds, policies)
        found = _overload(runs) if case == "gsm8k" else _trace(runs)
        found.append(_gap(runs))
        if case in ERROR_CASES:
            found.append(_errors(runs))
        rows += [f"| {case} | " + " | ".join(cells) + " |" for cells in found]
    return "\n".join(rows)


def _said(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    return f"{mean(values):.{digits}f} ± {half_width(values):.{digits}f}{unit}"


def _met(holds: bool) -> str:
    return "yes" if holds else "no"


def _others(runs: Runs) -> list[str]:
    return [name for name in runs.policies if name != "horizon" and name not in VARIANTS]


def _latency(runs: Runs) -> tuple[str, float, float, str]:
    ratio = runs.ratio("horizon", "e2e_mean_s")
    rival, theirs = runs.best(_others(runs), "e2e_mean_s", min)
    ours = runs.of("horizon", "e2e_mean_s")
    said = (
        f"{_said(ours)} s, {mean(ratio) - 1:+.1%} ± {half_width(ratio):.1%} of vllm-v1's "
        f"{mean(runs.of('vllm-v1', 'e2e_mean_s')):.2f} s; best other: {rival} {theirs:.2f} s"
    )
    return said, mean(ratio), theirs - mean(ours), rival


def _trace(runs: Runs) -> list[tuple[str, ...]]:
    said, ratio, ahead, _ = _latency(runs)
    rows = [("mean latency", said, "-25 %, and below every other", _met(ratio <= 0.75 and ahead > 0))]
    for title, field, digits in (("p99 TTFT", "ttft_p99_s", 2), ("p99 TPOT", "tpot_p99_s", 3)):
        ratios = runs.ratio("horizon", field)
        said = f"{_said(runs.of('horizon', field), digits)} s, {_said(ratios)} times vllm-v1's"
        rows.append((title, said, "not above", _met(mean(ratios) - half_width(ratios) <= 1)))
    rows.append(_longest(runs))
    ratios = runs.ratio(GOODPUT, "goodput_per_s")
    mine = mean(runs.of(GOODPUT, "goodput_per_s"))
    named, most = runs.best(SLO_RIVALS, "goodput_per_s", max)
    rival, theirs = runs.best(_others(runs), "goodput_per_s", max)
    said = (
        f"{mine:.2f}/s with its objective `goodput`, {_said(ratios)} times vllm-v1's; {named} {most:.2f}/s, "
        f"best other: {rival} {theirs:.2f}/s"
    )
    reach = "1.3 times, above " + ", ".join(SLO_RIVALS)
    return [*rows, ("goodput", said, reach, _met(mean(ratios) >= 1.3 and mine > most))]


def _longest(runs: Runs) -> tuple[str, ...]:
    """Say what the requests pay that stand behind all others, and what it is like without them."""
    e2e, ttft = (runs.ratio(ALL_PROTECTED, field) for field in ("e2e_mean_s", "ttft_p99_s"))
    said = (
        f"{_said(runs.of('horizon', 'ttft_max_s'), 1)} s, vllm-v1 {mean(runs.of('vllm-v1', 'ttft_max_s')):.1f} s; with "
        f"`exempt` 0 {mean(runs.of(ALL_PROTECTED, 'ttft_max_s')):.1f} s, mean latency {mean(e2e) - 1:+.1%}, "
        f"p99 TTFT {_said(ttft)} times vllm-v1's"
    )
    return ("longest TTFT", said, "reported", "")


def _overload(runs: Runs) -> list[tuple[str, ...]]:
    ratios = runs.ratio("horizon", "requests_per_s")
    said, ratio, ahead, _ = _latency(runs)
    thrown = runs.of("horizon", "preemptions")
    return [
        (
            "throughput",
            f"{_said(runs.of('horizon', 'requests_per_s'))}/s, {_said(ratios)} times vllm-v1's",
            "1.1 times",
            _met(mean(ratios) >= 1.1),
        ),
        ("mean latency", said, "-30 %", _met(ratio <= 0.7 and ahead > 0)),
        (
            "preemptions",
            f"{mean(thrown):.1f}, {max(thrown):.0f} at most; vllm-v1 {mean(runs.of('vllm-v1', 'preemptions')):.0f}",
            "under 5",
            _met(max(thrown) < 5),
        ),
    ]


def _gap(runs: Runs) -> tuple[str, ...]:
    bound, best = runs.hindsight("bound"), runs.hindsight("best")

    def gap(policy: str) -> list[float]:
        return [1 - b / value for b, value in zip(bound, runs.of(policy, "e2e_mean_s"), strict=True)]

    over = [value / b for b, value in zip(best, runs.of("horizon", "e2e_mean_s"), strict=True)]
    said = (
        f"{mean(gap('horizon')):.1%}, to the bound of {mean(bound):.2f} s (vllm-v1 {mean(gap('vllm-v1')):.1%}); "
        f"{_said(over)} times the best found in hindsight, {mean(best):.2f} s"
    )
    return ("hindsight gap of the mean latency", said, "reported", "")


def _errors(runs: Runs) -> tuple[str, ...]:
    """Compare how the mean latency grows with the errors of the predictions."""
    field = "e2e_mean_s"
    rival, _ = runs.best(HEURISTICS, field, min, "exact")

    def line(policy: str) -> str:
        return ", ".join(f"{mean(runs.of(policy, field, error)):.2f}" for error in ERRORS)

    def growth(policy: str) -> list[float]:
        pairs = zip(runs.of(policy, field, ERRORS[-1]), runs.of(policy, field, "exact"), strict=True)
        return [worst / exact for worst, exact in pairs]

    ours, theirs = growth("horizon"), growth(rival)
    slower = mean(ours) <= mean(theirs) + half_width(ours) + half_width(theirs)
    under = all(
        mean(r) - half_width(r) <= 1
        for r in (runs.ratio("horizon", field, lengths=error) for error in ERRORS)
    )
    said = (
        f"{line('horizon')} s (x {_said(ours, 3)}); {rival} {line(rival)} s (x {_said(theirs, 3)}); vllm-v1 "
        f"{mean(runs.of('vllm-v1', field)):.2f} s"
    )
    return (
        "mean latency with " + ", ".join(ERRORS),
        said,
        "grows no faster than the best heuristic's, never above vllm-v1's",
        _met(slower and under),
    )

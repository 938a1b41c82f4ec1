"""Serving metrics: each has one definition, and it is here.

TTFT: arrival to first token. TPOT: (finish - first token) / (output tokens - 1), for requests of two tokens
and more. End-to-end latency: arrival to finish. Makespan: time 0 to the last finish. Throughput: output
tokens, or requests, over the span from the first arrival to the last finish. Goodput: requests that met
both their TTFT and their TPOT level, over the same span. Percentiles interpolate linearly, as numpy's do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.problem.columns import Floats, Ints
from optimizer.problem.engine import Engine
from optimizer.problem.requests import Requests
from optimizer.problem.schedule import Schedule

TTFT_SLO_S = 0.2
TPOT_SLO_S = 0.1
"""DistServe's defaults (`simdistserve`, systems table card 10), used where a request names none."""


@dataclass(frozen=True, slots=True, eq=False)
class Metrics:
    """What a schedule was worth, by request and in total.

    Attributes
    ----------
    ttft_s, e2e_s, tpot_s
        By request; NaN where it does not apply (unfinished; one output token has no TPOT).
    met_slo
        By request: finished, and within both levels.
    preemptions
        By request.
    kv_use_mean, kv_use_peak
        Share of the KV cache held, averaged over busy time, and at most.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    first_token_s: Floats
    finish_s: Floats
    ttft_s: Floats
    e2e_s: Floats
    tpot_s: Floats
    met_slo: np.ndarray[Any, np.dtype[np.bool_]]
    preemptions: Ints
    makespan_s: float
    span_s: float
    steps: int
    kv_use_mean: float
    kv_use_peak: float

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        requests: Requests,
        engine: Engine,
        *,
        ttft_slo_s: float = TTFT_SLO_S,
        tpot_slo_s: float = TPOT_SLO_S,
    ) -> Metrics:
        """Measure a schedule.

        Parameters
        ----------
        schedule, requests, engine
            As simulated.
        ttft_slo_s, tpot_slo_s
            Levels for requests that name none.
        """
        from optimizer.problem.kv_use import kv_use

        first, finish = schedule.first_token_s, schedule.finish_s
        ttft = first - requests.arrival_s
        more = requests.output_tokens - 1
        tpot = np.where(more > 0, (finish - first) / np.maximum(more, 1), np.nan)
        ttft_level = _levels(requests.ttft_slo_s, ttft_slo_s, len(requests))
        tpot_level = _levels(requests.tpot_slo_s, tpot_slo_s, len(requests))
        # A level is met to the nanosecond, not to the last bit of a float.
        met = np.isfinite(finish) & (ttft <= ttft_level + 1e-9) & ((more == 0) | (tpot <= tpot_level + 1e-9))
        mean, peak = kv_use(schedule, requests, engine)
        done = np.isfinite(finish).any()
        makespan = float(np.nanmax(finish)) if done else float("nan")
        return cls(
            requests.arrival_s, requests.prompt_tokens, requests.output_tokens, first, finish,
            ttft, finish - requests.arrival_s, tpot, met,
            np.bincount(schedule.preempt_request, minlength=len(requests)).astype(np.int64),
            makespan, makespan - float(requests.arrival_s[0]), int(schedule.steps.sum()), mean, peak,
        )  # fmt: skip

    def summary(self) -> dict[str, float | int | None]:
        """Give the headline numbers; a number that does not exist is None."""
        finished = int(np.isfinite(self.finish_s).sum())
        out = int(self.output_tokens[np.isfinite(self.finish_s)].sum())
        values: dict[str, float | int | None] = {
            "requests": len(self.finish_s),
            "finished": finished,
            "makespan_s": _or_none(self.makespan_s),
            "requests_per_s": _ratio(finished, self.span_s),
            "output_tokens_per_s": _ratio(out, self.span_s),
            "goodput_per_s": _ratio(int(self.met_slo.sum()), self.span_s),
            "slo_attainment": _ratio(int(self.met_slo.sum()), len(self.met_slo)),
        }
        for name, column in (("ttft", self.ttft_s), ("tpot", self.tpot_s), ("e2e", self.e2e_s)):
            known = column[np.isfinite(column)]
            for figure, number in (("mean", np.mean), ("p50", np.median), ("p99", _p99)):
                values[f"{name}_{figure}_s"] = float(number(known)) if known.size else None
        values |= {
            "kv_use_mean": _or_none(self.kv_use_mean),
            "kv_use_peak": _or_none(self.kv_use_peak),
            "preemptions": int(self.preemptions.sum()),
            "steps": self.steps,
        }
        return values

    def to_frame(self) -> Any:
        """Give one row per request as a pandas DataFrame (needs the `analysis` extra)."""
        import pandas as pd

        return pd.DataFrame(self.columns())

    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """Give the per-request columns by name."""
        names = (
            "arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "finish_s",
            "ttft_s", "tpot_s", "e2e_s", "met_slo", "preemptions",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names}


def _levels(own: Floats | None, default: float, n: int) -> Floats:
    return np.full(n, default) if own is None else np.where(np.isnan(own), default, own)


def _p99(values: Floats) -> float:
    return float(np.percentile(values, 99))


def _or_none(value: float) -> float | None:
    return None if value != value else value


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None

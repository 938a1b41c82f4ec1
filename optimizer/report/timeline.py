"""What went on at each moment: who waited, ran or was preempted, and how full batch and KV cache were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from optimizer.problem import Engine, Requests, Schedule
from optimizer.problem.columns import Floats, Ints
from optimizer.problem.kv_use import kv_tokens_by_run


@dataclass(frozen=True, slots=True, eq=False)
class Episodes:
    """Stays of requests: from arrival or preemption, over admission, to the next preemption or the finish.

    Attributes
    ----------
    request
        Whose; the stays of a request follow each other.
    queued_s
        When it began to wait: its arrival, or its preemption.
    admitted_s
        When its first chunk began; NaN: it never was.
    decode_s
        When its prompt was done and it began to decode; NaN: it did not in this stay.
    left_s
        When it was preempted or finished; NaN: neither.
    preempted
        Whether the stay ended with a preemption.
    """

    request: Ints
    queued_s: Floats
    admitted_s: Floats
    decode_s: Floats
    left_s: Floats
    preempted: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

    @classmethod
    def of(cls, schedule: Schedule, requests: Requests) -> Self:
        """Read the stays off a schedule."""
        s, n, runs = schedule, len(requests), len(schedule.steps)

        def key(request: Ints, run: Ints) -> Ints:
            return request * np.int64(runs + 1) + run

        preempts = np.sort(key(s.preempt_request, s.preempt_run))
        preempt_request, preempt_run = np.divmod(preempts, runs + 1)
        count = np.bincount(preempt_request, minlength=n).astype(np.int64)
        request = np.repeat(np.arange(n), count + 1)
        total = len(request)
        final = np.cumsum(count + 1) - 1
        is_final = np.zeros(total, np.bool_)
        is_final[final] = True
        preempt_s = s.start_s[preempt_run]
        left = np.full(total, np.nan)
        left[final], left[~is_final] = s.finish_s, preempt_s
        queued = np.full(total, np.nan)
        queued[final - count] = requests.arrival_s
        later = np.ones(total, np.bool_)
        later[final - count] = False
        queued[later] = preempt_s

        def stay(request: Ints, run: Ints) -> Ints:
            # One stay per request, and one more for each preemption up to that run.
            return request + np.searchsorted(preempts, key(request, run), side="right")

        in_stay = stay(s.chunk_request, s.chunk_run)
        admitted, prefilled = np.full(total, np.inf), np.full(total, -np.inf)
        np.minimum.at(admitted, in_stay, s.start_s[s.chunk_run])
        np.maximum.at(prefilled, in_stay, s.end_s[s.chunk_run])
        admitted[np.isinf(admitted)] = np.nan
        decode = np.full(total, np.nan)
        decodes = stay(s.decode_request, s.decode_first_run)
        decode[decodes] = prefilled[decodes]
        return cls(request, queued, admitted, decode, left, ~is_final)


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """The state of the engine by run: requests at its start, batch and KV cache during it.

    Attributes
    ----------
    start_s, end_s
        Of the run.
    prefill_tokens, decode_tokens
        Computed in each of its steps.
    running, waiting
        Requests admitted and not yet out; requests that arrived, or were preempted, and are not admitted.
    kv_share
        Share of the KV cache held, from 0 to 1, averaged over the steps of the run.
    """

    start_s: Floats
    end_s: Floats
    prefill_tokens: Ints
    decode_tokens: Ints
    running: Ints
    waiting: Ints
    kv_share: Floats

    @classmethod
    def of(cls, schedule: Schedule, requests: Requests, engine: Engine) -> Self:
        """Read the state off a schedule."""
        stays, moment = Episodes.of(schedule, requests), schedule.start_s

        def by_then(times: Floats) -> Ints:
            return np.searchsorted(np.sort(times[~np.isnan(times)]), moment, side="right")

        admitted = by_then(stays.admitted_s)
        return cls(
            schedule.start_s,
            schedule.end_s,
            schedule.prefill_tokens,
            schedule.decode_seqs,
            admitted - by_then(stays.left_s),
            by_then(stays.queued_s) - admitted,
            kv_tokens_by_run(schedule)[1] / engine.kv_tokens,
        )

    def averages(self, values: Floats | Ints, edges_s: Floats) -> Floats:
        """Average a value over time between edges; idle time counts as 0."""
        # The integral is piecewise linear with corners at the starts and ends of the runs.
        corners = np.ravel(np.column_stack((self.start_s, self.end_s)))
        amounts = np.ravel(np.column_stack((np.zeros(len(values)), values * (self.end_s - self.start_s))))
        return np.diff(np.interp(edges_s, corners, np.cumsum(amounts))) / np.diff(edges_s)

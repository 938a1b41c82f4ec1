"""Writes down what is executed, as runs, and makes a `Schedule` of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, repeat
from operator import ne, truediv
from typing import Any

import numpy as np

from optimizer.problem.columns import Floats
from optimizer.problem.schedule import Schedule
from optimizer.units import TICKS_PER_SECOND

_FLUSH = 1 << 11
"""Runs kept as Python tuples at most: few enough to be still at hand when they become arrays."""

Run = tuple[int, int, int, int, int, int, int]
_RUN = ("start_s", "end_s", "first_step_s", "steps", "decode_seqs", "decode_context", "prefill_tokens")
"""Of a run: the first three in ticks while it is a tuple."""


class Recorder:
    """Takes notes during a simulation; the tables are those of `Schedule`.

    A run is noted by appending it to `runs`; its chunks before that, with the number `count`; who decodes
    from the next run on, by its number in `opened`.
    """

    __slots__ = (
        "_held",
        "_kept",
        "caches",
        "chunks",
        "decodes",
        "flushed",
        "holds",
        "opened",
        "preempts",
        "runs",
    )

    def __init__(self, size: int) -> None:
        self.runs: list[Run] = []
        self._kept: list[tuple[np.ndarray[Any, Any], ...]] = []
        self.flushed = 0
        self.chunks: list[int] = []
        self.decodes: list[int] = []
        self.preempts: list[int] = []
        self.caches: list[int] = []
        self.holds: list[int] = []
        self.opened = [0] * size
        self._held: dict[int, tuple[int, int, int]] = {}

    @property
    def count(self) -> int:
        """Runs noted so far: the number of the next one."""
        return self.flushed + len(self.runs)

    def left(self, request: int) -> None:
        """Note that a request decodes no more."""
        last = self.flushed + len(self.runs) - 1
        if self.opened[request] <= last:
            self.decodes += (request, self.opened[request], last)
        if len(self.runs) >= _FLUSH:
            self._flush()

    def preempted(self, request: int) -> None:
        """Note a preemption before the next run."""
        self.preempts += (self.count, request)

    def cached(self, request: int, tokens: int) -> None:
        """Note a prefix cache hit at an admission before the next run."""
        self.caches += (self.count, request, tokens)

    def reserved(self, request: int, offset: int, tokens: int) -> None:
        """Note that a request holds a reservation from the next run on."""
        self._held[request] = (self.count, offset, tokens)

    def released(self, request: int) -> None:
        """Note that a request holds its reservation no more."""
        first, offset, tokens = self._held.pop(request)
        if first < self.count:
            self.holds += (request, first, self.count - 1, offset, tokens)

    def _flush(self) -> None:
        if not self.runs:
            return
        n = len(self.runs)
        start, end, first, *rest = zip(*self.runs, strict=True)
        end_s = _seconds(end)
        # A run starts where the one before ends, but for idle times.
        start_s = np.empty(n)
        start_s[0] = start[0] / TICKS_PER_SECOND
        start_s[1:] = end_s[:-1]
        for i in compress(range(1, n), map(ne, start[1:], end)):
            start_s[i] = start[i] / TICKS_PER_SECOND
        self._kept.append((start_s, end_s, _seconds(first), *(np.fromiter(c, np.int64, n) for c in rest)))
        self.flushed += len(self.runs)
        self.runs.clear()

    def schedule(
        self,
        policy: str,
        block_tokens: int,
        max_num_batched_tokens: int | None,
        first_token: list[int],
        finish: list[int],
    ) -> Schedule:
        """Make the schedule; moments in ticks, -1 for never."""
        for request in list(self._held):
            self.released(request)
        self._flush()
        runs = [np.concatenate(c) for c in zip(*self._kept, strict=True)] or [np.empty(0)] * len(_RUN)
        tables: dict[str, Any] = dict(zip(_RUN, runs, strict=True))
        for names, flat in (
            (("chunk_run", "chunk_request", "chunk_tokens", "chunk_context"), self.chunks),
            (("decode_request", "decode_first_run", "decode_last_run"), self.decodes),
            (("preempt_run", "preempt_request"), self.preempts),
            (("cached_run", "cached_request", "cached_tokens"), self.caches),
            (("hold_request", "hold_first_run", "hold_last_run", "hold_offset", "hold_tokens"), self.holds),
        ):
            table = np.array(flat, dtype=np.int64).reshape(-1, len(names))
            tables |= {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(names)}
        return Schedule(
            policy=policy,
            block_tokens=block_tokens,
            max_num_batched_tokens=max_num_batched_tokens,
            first_token_s=_moments(first_token),
            finish_s=_moments(finish),
            **tables,
        )


def _seconds(column: Sequence[int]) -> Floats:
    return np.fromiter(map(truediv, column, repeat(TICKS_PER_SECOND)), np.float64, len(column))


def _moments(given: list[int]) -> Floats:
    return np.array([t / TICKS_PER_SECOND if t >= 0 else np.nan for t in given])

"""How full the KV cache was: in total and by run, without looking at any request in any step.

While a request decodes, its context grows in lockstep with the count of decode steps D. So the blocks of a
decoder, ceil((o + D) / b) with o its context when D was 0, need only its quotient and its residue by b: one
counter per residue class stands for all requests, and b cumulative sums over the runs give every total.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.problem.columns import Floats, Ints
from optimizer.problem.engine import Engine
from optimizer.problem.requests import Requests
from optimizer.problem.schedule import Schedule

_PREEMPT, _CACHED, _CHUNK, _DECODE = range(4)


def kv_use(schedule: Schedule, requests: Requests, engine: Engine) -> tuple[float, float]:
    """Measure the share of the KV cache that was held: its mean over busy time, and its peak.

    Paged systems hold whole blocks, those of a step allocated in it; a request waiting between two chunks,
    or stalled, keeps its own. Systems that reserve hold what they reserved. Runs weigh by their time, the
    steps of a run equally, so the mean hardly depends on how steps are gathered into runs.

    A block that a prefix cache hit claims is counted with the request that computed it, while that one
    lives, and not with those that share it. Both numbers are therefore lower bounds where prefixes are
    shared, never above what the pool really held, and exact everywhere else.

    Parameters
    ----------
    schedule
        A schedule without violations; for any other the numbers mean nothing.
    requests
        Those that were scheduled.
    engine
        Gives the capacity.

    Returns
    -------
    mean, peak
        Shares of `engine.kv_tokens`, from 0 to 1; NaN for a schedule without runs.

    Notes
    -----
    O(n log n + b·r) time for n table rows, r runs and blocks of b tokens, O(n + r) memory.

    Examples
    --------
    One request of 20 prompt and 13 output tokens holds 2 blocks of 16, of the engine's 4:

    >>> from optimizer.problem import Engine, Requests, StepTime
    >>> columns = dict.fromkeys(Schedule.__dataclass_fields__, np.zeros(0, np.int64)) | {
    ...     "policy": "by hand", "block_tokens": 16, "max_num_batched_tokens": 512,
    ...     "start_s": np.array([0.0, 1.0]), "end_s": np.array([1.0, 13.0]), "steps": np.array([1, 12]),
    ...     "decode_seqs": np.array([0, 1]),
    ...     "chunk_run": np.array([0]), "chunk_request": np.array([0]),
    ...     "chunk_tokens": np.array([20]), "chunk_context": np.array([0]),
    ...     "decode_request": np.array([0]), "decode_first_run": np.array([1]),
    ...     "decode_last_run": np.array([1]),
    ... }
    >>> engine = Engine(name="toy", kv_blocks=4, step_time=StepTime.affine(base_s=1.0))
    >>> requests = Requests.from_columns({"prompt_tokens": [20], "output_tokens": [13]})
    >>> kv_use(Schedule(**columns), requests, engine)
    (0.5, 0.5)
    """
    if not len(schedule.steps):
        return float("nan"), float("nan")
    last, middle = kv_tokens_by_run(schedule)
    busy_s = schedule.end_s - schedule.start_s
    total_s = float(busy_s.sum())
    mean = float(middle @ busy_s) / total_s if total_s else float("nan")
    peak = float(last.max())
    return min(mean, peak) / engine.kv_tokens, peak / engine.kv_tokens


def kv_tokens_by_run(schedule: Schedule) -> tuple[Ints, Floats]:
    """Give the KV held in each run: in its last step, where it is fullest, and on average over its steps.

    Parameters
    ----------
    schedule
        A schedule without violations.

    Returns
    -------
    last, mean
        Tokens, by run. What `kv_use` says of blocks, reservations and shared prefixes holds here too.

    Examples
    --------
    >>> from optimizer.problem import Schedule
    >>> nothing = dict.fromkeys(Schedule.__dataclass_fields__, np.zeros(0, np.int64)) | {"block_tokens": 16}
    >>> [column.tolist() for column in kv_tokens_by_run(Schedule(**nothing))]
    [[], []]
    """
    if schedule.reserves:
        runs = len(schedule.steps)
        held = _over_runs(schedule.hold_first_run, schedule.hold_last_run, schedule.hold_tokens, runs)
        return held, held.astype(np.float64)
    last, mean = _blocks_by_run(schedule)
    return last * schedule.block_tokens, mean * schedule.block_tokens


def _blocks_by_run(schedule: Schedule) -> tuple[Ints, Floats]:
    """Blocks held in the last step of each run, and on average over its steps."""
    b, runs = schedule.block_tokens, len(schedule.steps)
    decodes = schedule.decode_seqs > 0
    decoded = np.zeros(runs + 1, np.int64)  # decode steps before each run
    np.cumsum(np.where(decodes, schedule.steps, 0), out=decoded[1:])
    rows = _Rows(schedule, decoded)

    # What is held idle from one row of a request to its next, and claims that others pay for.
    after = -(-(rows.before + rows.computed) // b)
    claim = rows.kind == _CACHED
    after[rows.kind == _PREEMPT] = 0
    after[claim] = rows.claimed[claim] // b
    idle = _over_runs(
        np.concatenate((rows.last + 1, rows.first[claim])),
        np.concatenate((rows.until, rows.episode_until()[claim])),
        np.concatenate((after, -(rows.claimed[claim] // b))),
        runs,
    )
    decode = rows.kind == _DECODE
    segments = (rows.first[decode], rows.last[decode], rows.before[decode])
    decoders_last, decoders_sum = _decoder_blocks(*segments, decoded, b)
    chunk_last = _sums(rows.first[rows.kind == _CHUNK], after[rows.kind == _CHUNK], runs)
    in_steps = _chunk_block_sums(schedule) + decoders_sum
    last = idle + chunk_last + decoders_last
    stalled = np.where(decodes, 0, decoders_last)
    return last, idle + stalled + in_steps / np.maximum(schedule.steps, 1)


def _chunk_block_sums(s: Schedule) -> Ints:
    """Blocks of all that prefill, added up over the steps of each run."""
    run = np.repeat(s.chunk_run, s.steps[s.chunk_run])
    steps = s.steps[s.chunk_run]
    nth = np.arange(len(run)) - np.repeat(np.cumsum(steps) - steps, steps) + 1
    context = np.repeat(s.chunk_context, steps) + nth * np.repeat(s.chunk_tokens, steps)
    return _sums(run, -(-context // s.block_tokens), len(s.steps))


class _Rows:
    """The rows of all tables that touch KV, sorted by request and run, with contexts filled in."""

    def __init__(self, schedule: Schedule, decoded: Ints) -> None:
        s, runs = schedule, len(schedule.steps)
        # A segment may reach on into runs in which nobody decodes: its last token comes before them.
        active = np.maximum.accumulate(np.where(s.decode_seqs > 0, np.arange(runs), -1))
        decode_until = np.maximum(active[s.decode_last_run], s.decode_first_run - 1)
        tables = (
            (s.preempt_request, s.preempt_run, s.preempt_run - 1),
            (s.cached_request, s.cached_run, s.cached_run - 1),
            (s.chunk_request, s.chunk_run, s.chunk_run),
            (s.decode_request, s.decode_first_run, decode_until),
        )
        kind = np.repeat(np.arange(4), [len(t[0]) for t in tables])
        request, first, last = (np.concatenate(column) for column in zip(*tables, strict=True))
        order = np.argsort((request * (runs + 1) + first) * 4 + kind)
        self.kind, request, self.first, self.last = kind[order], request[order], first[order], last[order]

        def laid_out(cached: Ints, chunk: Ints, decode: Ints) -> Ints:
            none = np.zeros(len(s.preempt_run), np.int64)
            return np.concatenate((none, cached, chunk, decode))[order]

        no_cached, no_decode = np.zeros_like(s.cached_run), np.zeros_like(s.decode_request)
        self.computed = laid_out(
            no_cached,
            s.chunk_tokens * s.steps[s.chunk_run],
            decoded[s.decode_last_run + 1] - decoded[s.decode_first_run],
        )
        self.claimed = laid_out(s.cached_tokens, np.zeros_like(s.chunk_run), no_decode)
        # A chunk says the context it starts from; what follows it is that plus what was computed since.
        since = np.cumsum(self.computed) - self.computed
        anchor = laid_out(no_cached, s.chunk_context, no_decode) - since
        rows = np.arange(len(order))
        latest = np.maximum.accumulate(np.where(self.kind == _CHUNK, rows, 0))
        self.before: Ints = anchor[latest] + since if len(order) else since
        # A request without a next row has finished: it holds nothing after its last one.
        same = request[1:] == request[:-1]
        self.until = self.last.copy()
        self.until[:-1] = np.where(same, self.first[1:] - 1, self.last[:-1])
        self._opens = np.append(True, ~same)[: len(order)] | (self.kind == _PREEMPT)

    def episode_until(self) -> Ints:
        """By row: the last run in which its request still holds what it got at that admission."""
        if not len(self.kind):
            return self.until
        opens = np.flatnonzero(self._opens)
        ends = np.maximum.reduceat(self.until, opens)
        return np.repeat(ends, np.diff(np.append(opens, len(self.kind))))


def _decoder_blocks(
    first_run: Ints, last_run: Ints, before: Ints, decoded: Ints, b: int
) -> tuple[Ints, Ints]:
    """Blocks of all decoders in the last step of each run, and added up over its steps.

    `before` is the context of each when its first run starts.
    """
    runs = len(decoded) - 1
    whole, residue = np.divmod(before - decoded[first_run], b)
    seqs, blocks, residues = (
        _over_runs(first_run, last_run, amount, runs) for amount in (None, whole, residue)
    )
    # With D = b*u + v, ceil((r + D) / b) is u + 1, more by 1 where r + v > b, less by 1 where r = v = 0.
    # Its sum over D = 1, 2, ... is (u + 1) * (b*u/2 + v + r) + max(0, r + v - b), and what r alone gives.
    u, v = np.divmod(decoded, b)
    plain = b * u * (u + 1) // 2 + (u + 1) * v
    in_last = blocks + seqs * (u[1:] + 1)
    in_sum = blocks * np.diff(decoded) + seqs * np.diff(plain) + residues * np.diff(u)
    for r in np.flatnonzero(np.bincount(residue, minlength=b)).tolist():
        of_class = residue == r
        count = _over_runs(first_run[of_class], last_run[of_class], None, runs)
        if r:
            over = np.maximum(v - (b - r), 0)
            in_last += count * (over[1:] > 0)
            in_sum += count * np.diff(over)
        else:
            in_last -= count * (v[1:] == 0)
    return in_last, in_sum


def _over_runs(first: Ints, last: Ints, amount: Ints | None, runs: int) -> Ints:
    """Total by run of amounts (None: 1 each) that hold from run `first` to run `last`."""
    edges = _sums(first, amount, runs + 1) - _sums(last + 1, amount, runs + 1)
    return np.cumsum(edges)[:runs]


def _sums(at: Ints, amount: Ints | None, size: int) -> Ints:
    # bincount adds weights as doubles: exact up to 2**53, and no cache has as many tokens.
    summed: NDArray[Any] = np.bincount(at, amount, minlength=size)
    return summed.astype(np.int64)

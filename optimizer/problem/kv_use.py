"""How full the KV cache was: in total and by run, without looking at any request in any step.

While a request decodes, its context grows in lockstep with the count of decode steps D. So the blocks of a
decoder, ceil((o + D) / b) with o its context when D was 0, need only its quotient and its residue by b: one
counter per residue class stands for all requests, and b cumulative sums over the runs give every total.

Within a run each step is longer than the one before by the same amount. So the average over the time of a run
needs two sums over its steps j = 0, 1, ...: of the blocks, and of j times the blocks.
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
    or stalled, keeps its own. Systems that reserve hold what they reserved. Every step weighs by its time,
    however steps are gathered into runs.

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
    ...     "start_s": np.array([0.0, 1.0]), "end_s": np.array([1.0, 13.0]),
    ...     "first_step_s": np.array([1.0, 1.0]), "steps": np.array([1, 12]), "decode_seqs": np.array([0, 1]),
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
    mean = float((middle * busy_s).sum()) / total_s if total_s else float("nan")
    peak = float(last.max())
    return min(mean, peak) / engine.kv_tokens, peak / engine.kv_tokens


def kv_tokens_by_run(schedule: Schedule) -> tuple[Ints, Floats]:
    """Give the KV held in each run: in its last step, where it is fullest, and on average over its time.

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


def _blocks_by_run(s: Schedule) -> tuple[Ints, Floats]:
    """Blocks held in the last step of each run, and on average over its time."""
    b, runs = s.block_tokens, len(s.steps)
    decodes = s.decode_seqs > 0
    decoded = np.zeros(runs + 1, np.int64)  # decode steps before each run
    np.cumsum(np.where(decodes, s.steps, 0), out=decoded[1:])
    rows = _Rows(s, decoded)

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
    decoders_last, decoders_sum, decoders_moment = _decoder_blocks(*segments, decoded, b)
    chunk_last = _sums(rows.first[rows.kind == _CHUNK], after[rows.kind == _CHUNK], runs)
    chunk_sum, chunk_moment = _chunk_block_sums(s)
    same = idle + np.where(decodes, 0, decoders_last)  # in every step of the run
    return idle + chunk_last + decoders_last, _over_time(
        s,
        same * s.steps + chunk_sum + decoders_sum,
        same * (s.steps * (s.steps - 1) / 2) + chunk_moment + decoders_moment,
    )


def _over_time(s: Schedule, total: Ints, moment: Floats) -> Floats:
    """Average by run over time what adds up to `total` over its steps j, and to `moment` when multiplied by j."""
    busy_s = s.end_s - s.start_s
    growth_s = (busy_s - s.steps * s.first_step_s) / np.maximum(s.steps * (s.steps - 1) / 2, 1)
    timed = (s.steps > 1) & (busy_s > 0)
    integral = s.first_step_s * total + growth_s * moment
    return np.where(timed, integral / np.where(timed, busy_s, 1), total / np.maximum(s.steps, 1))


def _chunk_block_sums(s: Schedule) -> tuple[Ints, Ints]:
    """Blocks of all that prefill, added up over the steps of each run: as they are, and times the step's number."""
    run = np.repeat(s.chunk_run, s.steps[s.chunk_run])
    steps = s.steps[s.chunk_run]
    nth = np.arange(len(run)) - np.repeat(np.cumsum(steps) - steps, steps)
    context = np.repeat(s.chunk_context, steps) + (nth + 1) * np.repeat(s.chunk_tokens, steps)
    blocks = -(-context // s.block_tokens)
    return _sums(run, blocks, len(s.steps)), _sums(run, nth * blocks, len(s.steps))


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
) -> tuple[Ints, Ints, Floats]:
    """Blocks of all decoders in the last step of each run; added up over its steps j; and each times j.

    `before` is the context of each when its first run starts.
    """
    runs = len(decoded) - 1
    start, k = decoded[:-1], np.diff(decoded)
    m, w = np.divmod(k, b)
    offset = before - decoded[first_run]
    seqs, context = (_over_runs(first_run, last_run, amount, runs) for amount in (None, offset))
    context += seqs * start
    # A decoder with b*q + s tokens before the run holds q + 1 + (s + j) // b blocks in step j. Of the k = b*m + w
    # steps, those with j % b >= b - s have a block more than they had without s; n of them are in the last w.
    s_sum, s_squares, n_sum, n_squares, beyond, none = np.zeros((6, runs), np.int64)
    residue, start_residue = offset % b, start % b
    for r in np.flatnonzero(np.bincount(residue, minlength=b)).tolist():
        of_class = residue == r
        count = _over_runs(first_run[of_class], last_run[of_class], None, runs)
        s = start_residue + r
        s -= b * (s >= b)
        n = np.maximum(s + w - b, 0)
        none += count * (s + w == 0)
        beyond += count * (n > 0)
        of_s, of_n = count * s, count * n
        s_sum += of_s
        n_sum += of_n
        s_squares += of_s * s
        n_squares += of_n * n
    base = seqs + (context - s_sum) // b
    last = base + seqs * m + beyond - none
    cycles = b * m * (m - 1) // 2  # sums over j of j // b, and of j * (j // b), follow from it
    total = base * k + seqs * (cycles + m * w) + m * s_sum + n_sum
    m, w = m.astype(np.float64), w.astype(np.float64)  # the moment of a very long run is no 64-bit integer
    plain = cycles * (b * (2 * m - 1) / 3 + (b - 1) / 2) + m * w * (b * m + (w - 1) / 2)
    moment = (
        base * (k * (k - 1) / 2) + seqs * plain + cycles * s_sum + m * ((2 * b - 1) * s_sum - s_squares) / 2
    )
    return last, total, moment + b * m * n_sum + ((2 * w - 1) * n_sum - n_squares) / 2


def _over_runs(first: Ints, last: Ints, amount: Ints | None, runs: int) -> Ints:
    """Total by run of amounts (None: 1 each) that hold from run `first` to run `last`."""
    edges = _sums(first, amount, runs + 1) - _sums(last + 1, amount, runs + 1)
    return np.cumsum(edges)[:runs]


def _sums(at: Ints, amount: Ints | None, size: int) -> Ints:
    # bincount adds weights as doubles: exact up to 2**53, and no cache has as many tokens.
    summed: NDArray[Any] = np.bincount(at, amount, minlength=size)
    return summed.astype(np.int64)

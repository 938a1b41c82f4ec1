"""Good schedules, and the ways to break them, each with the rule that it breaks."""

from __future__ import annotations

import dataclasses

import numpy as np

from optimizer.check import Rule
from optimizer.problem import Instance, PrefixHashes, Schedule
from tests.check.maker import instance, make_paged, make_reserved

TABLES = ("chunk", "decode", "preempt", "cached", "hold")
PAGED = instance(
    [(0, 100, 40), (0, 30, 25), (2_000_000, 90, 30), (9_000_000, 20, 50), (9_000_000, 70, 8), (400_000_000, 9, 1)],
    kv_blocks=14, max_num_seqs=4,
)  # fmt: skip
RESERVED = instance([(0, 40, 10), (0, 25, 6), (1_000_000, 60, 12), (1_000_000, 5, 3)], kv_blocks=12)
HASHES = PrefixHashes(np.array([1, 2, 3, 1, 2, 4, 1, 5]), np.array([0, 3, 6, 8]), 16)
SHARED = instance(
    [(0, 50, 20), (0, 60, 10), (60_000_000, 40, 5)], HASHES, prefix_caching=True,
    max_num_batched_tokens=128,
)  # fmt: skip


def paged() -> Schedule:
    return make_paged(PAGED)


def reserved() -> Schedule:
    return make_reserved(RESERVED, batch=2, contiguous=True)


def sharing() -> Schedule:
    return make_paged(SHARED)


def put(s: Schedule, column: str, index: int, value) -> Schedule:
    values = getattr(s, column).copy()
    values[index] = value(values[index]) if callable(value) else value
    return dataclasses.replace(s, **{column: values})


def rows(s: Schedule, table: str, keep) -> Schedule:
    """Keep some rows of a table: a mask, or row numbers that may repeat."""
    names = [f.name for f in dataclasses.fields(s) if f.name.startswith(f"{table}_")]
    names = [n for n in names if n not in ("decode_seqs", "decode_context")]
    return dataclasses.replace(s, **{n: getattr(s, n)[keep] for n in names})


def without(s: Schedule, table: str, index: int) -> Schedule:
    return rows(s, table, np.arange(len(getattr(s, f"{table}_request"))) != index)


def append(s: Schedule, **values: int) -> Schedule:
    return dataclasses.replace(s, **{n: np.append(getattr(s, n), v) for n, v in values.items()})


def other(made: Instance, **changes) -> Instance:
    return dataclasses.replace(made, engine=made.engine.replace(**changes))


def late(made: Instance) -> Instance:
    arrival_s = made.requests.arrival_s + 1e-7
    return dataclasses.replace(made, requests=made.requests.replace(arrival_s=arrival_s))


def chunks_of(s: Schedule, request: int) -> list[int]:
    return np.flatnonzero(s.chunk_request == request).tolist()


def segment_of(s: Schedule, request: int) -> int:
    return int(np.flatnonzero(s.decode_request == request)[0])


def swapped_segments(s):
    a, b = segment_of(s, 0), segment_of(s, 1)
    ends = s.decode_last_run.copy()
    ends[[a, b]] = ends[[b, a]]
    return dataclasses.replace(s, decode_last_run=ends)


def shifted_run(s, run, by_s):
    return put(put(s, "start_s", run, lambda x: x + by_s), "end_s", run, lambda x: x + by_s)


def over_budget(s):
    row = chunks_of(s, 0)[0]
    more = put(s, "chunk_tokens", row, lambda n: n + 64)
    return put(more, "prefill_tokens", int(s.chunk_run[row]), lambda n: n + 64)


def lost_request(s):
    for table in TABLES:
        s = rows(s, table, getattr(s, f"{table}_request") != 3)
    return put(put(s, "first_token_s", 3, np.nan), "finish_s", 3, np.nan)


def empty_run_at_end(s):
    end = s.end_s[-1]
    return append(
        s, start_s=end, end_s=end + 0.0049, first_step_s=0.0049, steps=1, decode_seqs=0, decode_context=0,
        prefill_tokens=0,
    )  # fmt: skip


def unfinished(s):
    """The last decode of a request is taken away, the columns of its run say so."""
    row = segment_of(s, 0)
    return put(s, "decode_last_run", row, lambda r: r - 1)


def preempted_decode(s):
    rows = zip(s.preempt_run, s.preempt_request, strict=True)
    return next(
        k for k, (run, r) in enumerate(rows)
        if ((s.decode_request == r) & (s.decode_last_run < run)).any()
    )  # fmt: skip


def uncomputed_claim(s):
    """The very first admission starts from a prefix that nobody has computed."""
    s = put(put(s, "chunk_context", 0, 16), "chunk_tokens", 0, lambda n: n - 16)
    return append(
        put(s, "prefill_tokens", 0, lambda n: n - 16), cached_run=0, cached_request=0, cached_tokens=16
    )


def whole_prompt_claim(s):
    return put(s, "cached_tokens", 0, 64)


# What is broken, the rule that must be named, and how.
BREAK_PAGED = [
    ("drop a chunk", Rule.CONTEXT, lambda s: without(s, "chunk", chunks_of(s, 0)[0])),
    ("drop the last chunk of a prompt", Rule.PRECEDENCE, lambda s: without(s, "chunk", chunks_of(s, 1)[-1])),
    ("grow a chunk over the budget", Rule.BUDGET, over_budget),
    ("grow a prompt", Rule.PREFILL, lambda s: put(s, "chunk_tokens", chunks_of(s, 1)[-1], lambda n: n + 1)),
    ("a chunk twice", Rule.ONCE, lambda s: rows(s, "chunk", [0, *range(len(s.chunk_run))])),
    (
        "a chunk off by one",
        Rule.CONTEXT,
        lambda s: put(s, "chunk_context", chunks_of(s, 0)[1], lambda c: c + 1),
    ),
    ("start a run early", Rule.RUN_ORDER, lambda s: shifted_run(s, 4, -1e-6)),
    ("start a run late", Rule.TIMES, lambda s: put(s, "start_s", 4, lambda x: x + 1e-6)),
    ("end a run late", Rule.TIMES, lambda s: put(s, "end_s", 3, lambda x: x + 1e-8)),
    ("no time", Rule.TIMES, lambda s: put(s, "end_s", 3, np.nan)),
    ("a slower first step", Rule.TIMES, lambda s: put(s, "first_step_s", 5, lambda x: x + 1e-8)),
    ("swap the ends of decodes", Rule.OVERRUN, swapped_segments),
    ("one decode less", Rule.LOST, unfinished),
    (
        "decode on after the finish",
        Rule.OVERRUN,
        lambda s: put(s, "decode_last_run", segment_of(s, 1), lambda r: r + 1),
    ),
    ("one more step", Rule.OVERRUN, lambda s: put(s, "steps", len(s.steps) - 3, lambda k: k + 1)),
    ("decode a request twice", Rule.ONCE, lambda s: rows(s, "decode", [0, *range(len(s.decode_request))])),
    (
        "decode before the prompt is done",
        Rule.PRECEDENCE,
        lambda s: put(s, "decode_first_run", segment_of(s, 0), lambda r: r - 1),
    ),
    ("decode without a prompt", Rule.PRECEDENCE, lambda s: rows(s, "chunk", s.chunk_request != 1)),
    (
        "forget a preemption of a decode",
        Rule.PRECEDENCE,
        lambda s: without(s, "preempt", preempted_decode(s)),
    ),
    ("forget a preemption of a prefill", Rule.CONTEXT, lambda s: without(s, "preempt", 0)),
    ("preempt who waits", Rule.PREEMPTION, lambda s: append(s, preempt_run=0, preempt_request=3)),
    (
        "preempt who is done",
        Rule.PREEMPTION,
        lambda s: append(s, preempt_run=len(s.steps) - 1, preempt_request=1),
    ),
    (
        "preempt and go on",
        Rule.PREEMPTION,
        lambda s: append(
            s, preempt_run=int(s.decode_first_run[0]) + 2, preempt_request=int(s.decode_request[0])
        ),
    ),
    ("lose a request", Rule.LOST, lost_request),
    ("a wrong first token", Rule.FIRST_TOKEN, lambda s: put(s, "first_token_s", 2, lambda x: x + 1e-8)),
    ("no first token", Rule.FIRST_TOKEN, lambda s: put(s, "first_token_s", 2, np.nan)),
    ("a wrong finish", Rule.FINISH, lambda s: put(s, "finish_s", 5, lambda x: x - 1e-8)),
    ("miscount decodes", Rule.COUNTS, lambda s: put(s, "decode_seqs", 6, lambda n: n + 1)),
    ("deny decodes", Rule.LOST, lambda s: put(s, "decode_seqs", 6, 0)),
    ("context off by one", Rule.COUNTS, lambda s: put(s, "decode_context", 6, lambda n: n - 1)),
    ("miscount prompt tokens", Rule.COUNTS, lambda s: put(s, "prefill_tokens", 0, lambda n: n - 1)),
    ("another budget", Rule.BUDGET, lambda s: dataclasses.replace(s, max_num_batched_tokens=65)),
    ("a run that is not there", Rule.INDEX, lambda s: put(s, "chunk_run", 0, len(s.steps))),
    ("a segment backwards", Rule.INDEX, lambda s: put(s, "decode_last_run", 0, 0)),
    ("a request that is not there", Rule.REQUEST, lambda s: put(s, "decode_request", 1, 6)),
    ("a negative request", Rule.REQUEST, lambda s: put(s, "chunk_request", 1, -1)),
    ("negative tokens", Rule.RANGE, lambda s: put(s, "chunk_tokens", 1, -5)),
    ("absurd tokens", Rule.RANGE, lambda s: put(s, "chunk_tokens", 1, 10**18)),
    ("negative decodes", Rule.RANGE, lambda s: put(s, "decode_seqs", 3, -1)),
    ("a run without steps", Rule.EMPTY_RUN, lambda s: put(s, "steps", 2, 0)),
    ("a run without anybody", Rule.EMPTY_RUN, empty_run_at_end),
    ("ragged columns", Rule.SHAPE, lambda s: dataclasses.replace(s, chunk_run=s.chunk_run[1:])),
    (
        "too few requests",
        Rule.SHAPE,
        lambda s: dataclasses.replace(s, finish_s=s.finish_s[1:], first_token_s=s.first_token_s[1:]),
    ),
    ("blocks of another size", Rule.SHAPE, lambda s: dataclasses.replace(s, block_tokens=8)),
]
BREAK_RESERVED = [
    ("overlapping reservations", Rule.CONTIGUITY, lambda s: put(s, "hold_offset", 1, lambda x: x - 1)),
    ("a reservation over the edge", Rule.CONTIGUITY, lambda s: put(s, "hold_offset", 1, 192 - 29)),
    ("a reservation too small", Rule.RESERVATION, lambda s: put(s, "hold_tokens", 0, lambda n: n - 1)),
    (
        "a reservation that ends early",
        Rule.RESERVATION,
        lambda s: put(s, "hold_last_run", 2, lambda r: r - 1),
    ),
    ("no reservation", Rule.RESERVATION, lambda s: without(s, "hold", 3)),
    ("two reservations at once", Rule.RESERVATION, lambda s: rows(s, "hold", [0, *range(4)])),
    ("reserve more than there is", Rule.CAPACITY, lambda s: put(s, "hold_tokens", 1, 160)),
    ("reserve before arrival", Rule.ARRIVAL, lambda s: put(s, "hold_first_run", 2, 0)),
]
BREAK_SHARING = [
    ("claim an uncomputed prefix", Rule.PREFIX_HIT, uncomputed_claim),
    (
        "claim ahead in the batch",
        Rule.PREFIX_HIT,
        lambda s: rows(s, "chunk", [1, 0, *range(2, len(s.chunk_run))]),
    ),
    ("claim half a block", Rule.PREFIX_HIT, lambda s: put(s, "cached_tokens", 0, lambda n: n - 8)),
    ("claim a whole prompt", Rule.PREFIX_HIT, whole_prompt_claim),
    ("claim twice", Rule.PREFIX_HIT, lambda s: rows(s, "cached", [0, *range(len(s.cached_run))])),
    (
        "claim and not use it",
        Rule.PREFIX_HIT,
        lambda s: append(s, cached_run=0, cached_request=2, cached_tokens=16),
    ),
    ("forget a claim", Rule.CONTEXT, lambda s: without(s, "cached", 0)),
]
# Good schedules on engines that they do not fit.
MISFITS = [
    ("exceed the seats", Rule.SEATS, paged, other(PAGED, max_num_seqs=2)),
    ("exceed the cache by a block", Rule.CAPACITY, paged, other(PAGED, kv_blocks=13)),
    ("start before arrival", Rule.ARRIVAL, paged, late(PAGED)),
    ("claim without a prefix cache", Rule.PREFIX_HIT, sharing, other(SHARED, prefix_caching=False)),
]
CASES = [
    *((PAGED, paged, *case) for case in BREAK_PAGED),
    *((RESERVED, reserved, *case) for case in BREAK_RESERVED),
    *((SHARED, sharing, *case) for case in BREAK_SHARING),
    *((made, make, name, rule, lambda s: s) for name, rule, make, made in MISFITS),
]

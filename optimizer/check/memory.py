"""KV memory: every block allocated in the step that needs it, and reservations as they were made.

Blocks are counted one by one, each in the run that allocates it: no arithmetic of residue classes as in
`optimizer.problem.kv_use`, so that each can be tested against the other.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from itertools import pairwise

import numpy as np

from optimizer.check.expand import expand
from optimizer.check.ledger import Ledger
from optimizer.check.prefix import PrefixUse
from optimizer.check.report import Findings, Rule
from optimizer.check.runs import by_run, over_runs
from optimizer.problem import Engine, Schedule
from optimizer.problem.columns import Ints


def check_paged(
    schedule: Schedule, engine: Engine, ledger: Ledger, decoded: Ints, prefix: PrefixUse, found: Findings
) -> None:
    """Check that the blocks held fit, in the last step of each run: contexts only grow within one."""
    b = schedule.block_tokens
    blocks = engine.kv_tokens // b
    used = own_blocks(schedule, ledger, decoded) + prefix.shared
    kept = prefix.kept
    found.add_where(
        Rule.CAPACITY,
        used > blocks,
        lambda run: {
            "run": run,
            "last_step": True,
            "message": f"{used[run]:,} blocks of {b} tokens are held; the cache has {blocks:,}",
        },
    )
    found.add_where(
        Rule.PREFIX_KEPT,
        (used <= blocks) & (used + kept > blocks),
        lambda run: {
            "run": run,
            "last_step": True,
            "message": f"{used[run]:,} blocks are held and {kept[run]:,} more kept for later hits; "
            f"the cache has {blocks:,}",
        },
    )


def own_blocks(schedule: Schedule, ledger: Ledger, decoded: Ints) -> Ints:
    """Give the blocks held in the last step of each run, without those that a prefix hit gave."""
    b, runs = schedule.block_tokens, len(schedule.steps)

    def blocks(tokens: Ints) -> Ints:
        return -(-tokens // b)

    change = by_run(schedule.chunk_run, blocks(ledger.chunk_after) - blocks(ledger.chunk_before), runs)
    # A decode step allocates where the context before it fills whole blocks.
    before, after, first = ledger.decode_before, ledger.decode_after, schedule.decode_first_run
    to_first = -before % b
    for row, place in expand(blocks(after) - blocks(before)):
        at_step = decoded[first[row]] + to_first[row] + place * b
        change += np.bincount(np.searchsorted(decoded, at_step, side="right") - 1, minlength=runs)
    freed = blocks(ledger.episode_context) - blocks(ledger.episode_cached)
    change -= by_run(ledger.episode_last + 1, freed, runs + 1)[:runs]
    return np.cumsum(change)


def check_reservations(
    schedule: Schedule, engine: Engine, ledger: Ledger, decoded: Ints, found: Findings
) -> None:
    """Check that reservations fit, do not overlap, and cover what is computed under them."""
    s, runs = schedule, len(schedule.steps)
    reserved = over_runs(s.hold_first_run, s.hold_last_run, s.hold_tokens, runs)
    found.add_where(
        Rule.CAPACITY,
        reserved > engine.kv_tokens,
        lambda run: {
            "run": run,
            "message": f"{reserved[run]:,} tokens are reserved; the cache has {engine.kv_tokens:,}",
        },
    )
    _check_contiguous(s, engine, found)
    holds: dict[int, list[tuple[int, int, int]]] = {}
    for request, *hold in zip(
        s.hold_request.tolist(), s.hold_first_run.tolist(), s.hold_last_run.tolist(), s.hold_tokens.tolist(),
        strict=True,
    ):  # fmt: skip
        holds.setdefault(request, []).append((hold[0], hold[1], hold[2]))
    for request, own in holds.items():
        own.sort()
        for (_, last, _), (first, _, _) in pairwise(own):
            if first <= last:
                found.add(Rule.RESERVATION, "holds two reservations at once", run=first, request=request)
    for request, first, last in zip(
        ledger.episode_request.tolist(), ledger.episode_first.tolist(), ledger.episode_last.tolist(),
        strict=True,
    ):  # fmt: skip
        uncovered = _uncovered(holds.get(request, []), first, last)
        if uncovered is not None:
            found.add(Rule.RESERVATION, "keeps KV without a reservation", run=uncovered, request=request)
    _check_growth(s, ledger, decoded, holds, found)


def _uncovered(own: list[tuple[int, int, int]], first: int, last: int) -> int | None:
    """Give the first run of first..last in which no hold is live."""
    for begins, ends, _ in own:
        if begins <= first <= ends:
            first = ends + 1
    return first if first <= last else None


def _check_growth(
    s: Schedule,
    ledger: Ledger,
    decoded: Ints,
    holds: dict[int, list[tuple[int, int, int]]],
    found: Findings,
) -> None:
    """Check that no context outgrows the reservation it lives in, at the end of each row or of the hold."""
    chunks = (s.chunk_request, s.chunk_run, s.chunk_run, ledger.chunk_before, ledger.chunk_after)
    decodes = (
        s.decode_request, s.decode_first_run, s.decode_last_run, ledger.decode_before, ledger.decode_after,
    )  # fmt: skip
    steps = decoded.tolist()
    for table, is_decode in ((chunks, False), (decodes, True)):
        rows = zip(*(column.tolist() for column in table), strict=True)
        for request, first, last, before, after in rows:
            for begins, ends, tokens in holds.get(request, ()):
                if begins > last or ends < first:
                    continue
                context = after
                if is_decode and ends < last:
                    context = min(after, before + steps[ends + 1] - steps[first])
                if context > tokens:
                    found.add(
                        Rule.RESERVATION,
                        f"{context:,} tokens in a reservation of {tokens:,}",
                        run=min(last, ends),
                        request=request,
                        last_step=True,
                    )


def _check_contiguous(s: Schedule, engine: Engine, found: Findings) -> None:
    """Sweep over the runs; live reservations stand sorted by offset, so only neighbours can overlap."""
    placed = np.flatnonzero(s.hold_offset >= 0)
    columns = (s.hold_first_run, s.hold_last_run, s.hold_offset, s.hold_tokens, s.hold_request)
    rows = [tuple(map(int, row)) for row in zip(*(column[placed] for column in columns), strict=True)]
    # At one run, what ended before it leaves (0) ahead of what begins with it (1).
    events = sorted(
        [(last + 1, 0, k) for k, (_, last, *_) in enumerate(rows)]
        + [(first, 1, k) for k, (first, *_) in enumerate(rows)]
    )
    live: list[tuple[int, int, int]] = []
    for run, begins, k in events:
        _, _, offset, tokens, request = rows[k]
        item = (offset, offset + tokens, request)
        if not begins:
            del live[bisect_left(live, item)]
            continue
        if item[1] > engine.kv_tokens:
            found.add(
                Rule.CONTIGUITY,
                f"reserved from token {offset:,} to {item[1]:,}; the cache has {engine.kv_tokens:,}",
                run=run,
                request=request,
            )
        at = bisect_left(live, item)
        for other in live[max(at - 1, 0) : at + 1]:
            if other[0] < item[1] and offset < other[1]:
                found.add(
                    Rule.CONTIGUITY,
                    f"reserved from token {offset:,} to {item[1]:,}, where request {found.who.name(other[2])} "
                    f"holds {other[0]:,} to {other[1]:,}",
                    run=run,
                    request=request,
                )
        insort(live, item)

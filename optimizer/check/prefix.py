"""Prefix sharing: which block is which, whether a hit was possible, and what shared blocks occupy.

A block full with hashed tokens (of prompts, and of outputs where their hashes are known) is known by the hash
of the prefix that it ends; every other block is private to its request. A hit claims the leading blocks of
its request. Between the last request that held a block and a later hit on it, the block must have stayed in
the cache: so much is necessary whatever is evicted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from optimizer.check.expand import expand
from optimizer.check.ledger import Ledger
from optimizer.check.report import Findings, Rule
from optimizer.check.runs import over_runs
from optimizer.problem import Engine, Instance, Requests, Schedule
from optimizer.problem.columns import Ints

_MOST_CLAIMS = 10**7


class _Intervals(NamedTuple):
    """When blocks are there: from one run to another, both included."""

    block: Ints
    first: Ints
    last: Ints


class PrefixUse(NamedTuple):
    """Blocks by run, beside those that live requests computed themselves."""

    shared: Ints
    """Claimed by live requests, and computed by none of them."""
    kept: Ints
    """Held by nobody, and claimed again later."""


class BlockNames:
    """Gives a number to every block of every request; equal blocks have equal numbers.

    Parameters
    ----------
    requests, b
        Hashes of `prefix.block_tokens` tokens are brought to blocks of b tokens: one hash stands for several
        blocks, or the last hash inside a block for the block. Where neither size divides the other, nothing
        is shared.
    """

    def __init__(self, requests: Requests, b: int) -> None:
        prefix = requests.prefix
        self.shared: Ints = np.zeros(len(requests), np.int64)
        """By request: leading blocks that other requests can have, too."""
        self.private_from = 0
        self.outputs_shared: NDArray[np.bool_] = np.zeros(len(requests), np.bool_)
        """By request: whether blocks that it fills while it decodes are among those."""
        self._longest = int(-(-(requests.prompt_tokens + requests.output_tokens).max() // b)) + 1
        if prefix is None or (prefix.block_tokens % b and b % prefix.block_tokens):
            return
        self._blocks_per_hash = max(1, prefix.block_tokens // b)
        self._hashes_per_block = max(1, b // prefix.block_tokens)
        known, self._hash = np.unique(prefix.ids, return_inverse=True)
        self._starts = prefix.starts
        hashes = np.diff(prefix.starts)
        self.shared = np.minimum(
            prefix.hashed_tokens(requests) // b, hashes * self._blocks_per_hash // self._hashes_per_block
        )
        self.private_from = len(known) * self._blocks_per_hash
        self.outputs_shared = self.shared * b > requests.prompt_tokens

    def of(self, request: Ints, place: Ints) -> Ints:
        """Name the blocks at some places (0: the first) of some requests."""
        names = self.private_from + request * self._longest + place
        is_shared = place < self.shared[request]
        if is_shared.any():
            request, place = request[is_shared], place[is_shared]
            m, w = self._blocks_per_hash, self._hashes_per_block
            last_hash = self._starts[request] + (place // m if w == 1 else (place + 1) * w - 1)
            names[is_shared] = self._hash[last_hash] * m + place % m
        return names

    def private_claimed(self, names: Ints) -> NDArray[np.bool_]:
        """Give by request whether one of its private blocks is among these names."""
        among = np.zeros(len(self.shared), np.bool_)
        among[(names[names >= self.private_from] - self.private_from) // self._longest] = True
        return among


def check_prefix_hits(
    schedule: Schedule, instance: Instance, ledger: Ledger, decoded: Ints, found: Findings
) -> PrefixUse:
    """Check every hit, and give what the blocks behind them occupy."""
    engine, runs = instance.engine, len(schedule.steps)
    nothing = PrefixUse(np.zeros(runs, np.int64), np.zeros(runs, np.int64))
    if not len(schedule.cached_run):
        return nothing
    if not engine.prefix_caching:
        found.add(
            Rule.PREFIX_HIT, f"{len(schedule.cached_run):,} prefix hits on an engine without prefix caching"
        )
        return nothing
    b = schedule.block_tokens
    found.add_where(
        Rule.PREFIX_HIT,
        schedule.cached_tokens % b > 0,
        lambda row: {
            "run": int(schedule.cached_run[row]),
            "request": int(schedule.cached_request[row]),
            "message": f"the hit gives {schedule.cached_tokens[row]:,} tokens; expected a multiple of {b}",
        },
    )
    unit = _unit(schedule, engine, ledger, found)
    names = BlockNames(instance.requests, unit)
    claims = _claims(ledger, names, unit)
    computed = _computed(schedule, ledger, decoded, names, claims.names, unit)
    _check_computed_before(schedule, ledger, claims, computed, found)
    shared, kept = _occupied(claims.intervals(ledger), computed.intervals, runs)
    return PrefixUse(shared * (unit // b), kept * (unit // b))


def _unit(schedule: Schedule, engine: Engine, ledger: Ledger, found: Findings) -> int:
    """Tokens per block that is followed by name: as held, unless that would be tens of millions of names."""
    b = schedule.block_tokens
    if int(ledger.episode_cached.sum()) // b <= _MOST_CLAIMS or b == engine.block_tokens:
        return b
    found.notes.append(
        f"prefix hits were followed in blocks of {engine.block_tokens} tokens, their last tokens not at all"
    )
    return engine.block_tokens


class _Claims(NamedTuple):
    """The blocks that hits claim, one by one."""

    names: Ints
    """Different blocks claimed by anybody, ascending; a claim gives its place in here."""
    episode: Ints
    place: Ints
    """Within the request: 0 is its first block."""
    block: Ints

    def intervals(self, ledger: Ledger) -> _Intervals:
        return _Intervals(self.block, ledger.episode_first[self.episode], ledger.episode_last[self.episode])


def _claims(ledger: Ledger, names: BlockNames, b: int) -> _Claims:
    parts = list(expand(ledger.episode_cached // b))
    episode = _joined([row for row, _ in parts])
    place = _joined([place for _, place in parts])
    different, block = np.unique(names.of(ledger.episode_request[episode], place), return_inverse=True)
    return _Claims(different, episode, place, block)


class _Computed(NamedTuple):
    """The claimed blocks where a request computed them itself."""

    intervals: _Intervals
    ready: Ints
    """By claimed block: moment from which it can be hit; see `_moment`."""


def _moment(run: Any, row: Any, rows: int) -> Any:
    """Number the admissions in order of time.

    In a step, a block can be hit by those that stand behind it in the batch: the order of the chunk table.
    """
    return run * (rows + 1) + row + 1


def _computed(
    s: Schedule, ledger: Ledger, decoded: Ints, names: BlockNames, claimed: Ints, b: int
) -> _Computed:
    rows, runs = len(s.chunk_run), len(s.steps)
    ready = np.full(len(claimed), _moment(runs + 1, 0, rows + 1))
    found: list[tuple[Ints, ...]] = []

    def take(request: Ints, place: Ints, row: Ints, first: Ints, last: Ints, moment: Ints) -> None:
        if not len(claimed):
            return
        name = names.of(request[row], place)
        block = np.minimum(np.searchsorted(claimed, name), len(claimed) - 1)
        hit = claimed[block] == name
        found.append((block[hit], first[hit], last[hit]))
        np.minimum.at(ready, block[hit], moment[hit])

    for row, nth in expand(ledger.chunk_after // b - ledger.chunk_before // b):
        place, run = ledger.chunk_before[row] // b + nth, s.chunk_run[row]
        in_first_step = (place + 1) * b <= ledger.chunk_before[row] + s.chunk_tokens[row]
        moment = np.where(in_first_step, _moment(run, row, rows + 1), _moment(run + 1, -1, rows + 1))
        take(s.chunk_request, place, row, run, ledger.episode_last[ledger.chunk_episode[row]], moment)
    # Decodes fill blocks that others can have where outputs are hashed; else only their own request can hit
    # them, after a preemption.
    again = (names.private_claimed(claimed) | names.outputs_shared)[s.decode_request]
    for row, nth in expand(np.where(again, ledger.decode_after // b - ledger.decode_before // b, 0)):
        before = ledger.decode_before[row]
        place = before // b + nth
        filled_by = decoded[s.decode_first_run[row]] + (place + 1) * b - before - 1  # which decode step
        run = np.searchsorted(decoded, filled_by, side="right") - 1
        # Decodes stand before admissions in a step: a block filled by the run's first step can be hit in it.
        moment = _moment(run + (filled_by > decoded[run]), -1, rows + 1)
        take(s.decode_request, place, row, run, ledger.episode_last[ledger.decode_episode[row]], moment)
    intervals = _Intervals(*(_joined([part[k] for part in found]) for k in range(3)))
    return _Computed(intervals, ready)


def _check_computed_before(
    s: Schedule, ledger: Ledger, claims: _Claims, computed: _Computed, found: Findings
) -> None:
    rows = len(s.chunk_run)
    # Who is admitted with nothing to compute yet stands behind all others of that step.
    computes = np.append(s.chunk_run, -1)[ledger.episode_chunk] == ledger.episode_first
    moment = _moment(ledger.episode_first, np.where(computes, ledger.episode_chunk, rows), rows + 1)
    early = np.flatnonzero(computed.ready[claims.block] >= moment[claims.episode])
    episodes, at = np.unique(claims.episode[early], return_index=True)
    for episode, claim in zip(episodes.tolist(), early[at].tolist(), strict=True):
        found.add(
            Rule.PREFIX_HIT,
            f"the hit gives {ledger.episode_cached[episode]:,} tokens; its block {claims.place[claim]} was not "
            "computed before",
            run=int(ledger.episode_first[episode]),
            request=int(ledger.episode_request[episode]),
        )


def _occupied(held: _Intervals, computed: _Intervals, runs: int) -> PrefixUse:
    span = runs + 2
    there = _union(_Intervals(*(np.concatenate(pair) for pair in zip(held, computed, strict=True))), span)
    own = _union(computed, span)
    shared = over_runs(there.first, there.last, 1, runs) - over_runs(own.first, own.last, 1, runs)
    # Absent, and then there again, with nobody who computes it anew: it was kept.
    gap = there.block[1:] == there.block[:-1]
    comes = there.block[1:] * span + there.first[1:]
    gap &= ~np.isin(comes, computed.block * span + computed.first)
    kept = over_runs(there.last[:-1][gap] + 1, there.first[1:][gap] - 1, 1, runs)
    return PrefixUse(shared, kept)


def _union(parts: _Intervals, span: int) -> _Intervals:
    """Merge intervals of a block that overlap or touch; sorted by block, then by time."""
    if not len(parts.block):
        return parts
    begin, end = parts.block * span + parts.first, parts.block * span + parts.last
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate(end[order])
    opens = np.append(True, begin[1:] > end[:-1] + 1)
    closes = np.append(opens[1:], True)
    block, first = np.divmod(begin[opens], span)
    return _Intervals(block, first, end[closes] % span)


def _joined(parts: list[Ints]) -> Ints:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)

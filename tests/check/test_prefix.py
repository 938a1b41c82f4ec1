"""Prefix hits: when they are possible, and what the blocks behind them occupy."""

from __future__ import annotations

import numpy as np
import pytest

from optimizer.check import Rule, check, expand, prefix
from optimizer.problem import Instance, PrefixHashes
from optimizer.problem.kv_use import kv_use
from tests.check.broken import other
from tests.check.maker import Recorder, instance


def _hashes(*lists: list[int], block_tokens: int = 16) -> PrefixHashes:
    ids = np.array([x for own in lists for x in own], np.int64)
    return PrefixHashes(ids, np.cumsum([0, *map(len, lists)]), block_tokens)


def _decode(book: Recorder, now: int, requests: list[int], steps: int) -> int:
    for _ in range(steps):
        now = book.step(now, [], requests)
    return now


def test_a_prefix_cannot_be_hit_after_the_cache_was_full_of_others():
    made = instance(
        [(0, 17, 1), (0, 60, 4), (0, 17, 1)], _hashes([1], [], [1]), prefix_caching=True, kv_blocks=4
    )
    book = Recorder(made, 64)
    now = book.step(0, [(0, 17)], [])
    now = book.step(now, [(1, 60)], [])
    now = _decode(book, now, [1], 3)
    book.hit(2, 16)
    book.step(now, [(2, 1)], [])
    report = check(book.schedule(), made)
    assert report.rules == {Rule.PREFIX_KEPT}, str(report)
    assert check(book.schedule(), other(made, kv_blocks=5))


def test_shared_blocks_occupy_the_cache_once():
    made = instance([(0, 33, 2), (0, 33, 9), (0, 33, 9)], _hashes(*[[1, 2]] * 3), prefix_caching=True)
    book = Recorder(made, 64)
    now = book.step(0, [(0, 33)], [])
    book.hit(1, 32)
    book.hit(2, 32)
    now = book.step(now, [(1, 1), (2, 1)], [0])  # 3 + 1 + 1 blocks of their own
    _decode(book, now, [1, 2], 8)  # 1 + 1 of their own, and the 2 that both still claim
    schedule = book.schedule()
    assert check(schedule, other(made, kv_blocks=5))
    assert check(schedule, other(made, kv_blocks=4)).rules == {Rule.CAPACITY}
    assert kv_use(schedule, made.requests, other(made, kv_blocks=5).engine)[1] == 1


def test_two_live_copies_count_twice():
    made = instance([(0, 17, 5), (0, 17, 5)], _hashes([1], [1]), prefix_caching=True, kv_blocks=4)
    book = Recorder(made, 64)
    _decode(book, book.step(0, [(0, 17), (1, 17)], []), [0, 1], 4)
    assert check(book.schedule(), made)
    assert check(book.schedule(), other(made, kv_blocks=3)).rules == {Rule.CAPACITY}


@pytest.mark.parametrize("per_step", [16, 32])
def test_a_block_can_be_hit_from_the_step_that_fills_it(per_step):
    """With 16 tokens per step the second block comes in the second step, after the hit."""
    made = instance([(0, 64, 1), (0, 40, 1)], _hashes([1, 2], [1, 2]), prefix_caching=True)
    book = Recorder(made, 64)
    book.hit(1, 32)
    now = book.step(0, [(0, per_step), (1, 4)], [])
    now = book.step(now, [(0, per_step), (1, 4)], [])
    while 0 in book.context:
        now = book.step(now, [(0, per_step)], [])
    schedule = book.schedule()
    assert schedule.steps[0] == 2
    report = check(schedule, made)
    assert report.rules == (set() if per_step == 32 else {Rule.PREFIX_HIT}), str(report)


def _preempted(claimed: int, block_tokens: int = 16) -> tuple[Recorder, Instance]:
    """A request that computed 33 tokens comes back and claims some of them."""
    made = instance([(0, 20, 20), (0, 4, 9)], kv_blocks=4, prefix_caching=True)
    book = Recorder(made, 64, block_tokens)
    now = _decode(book, book.step(0, [(0, 20)], []), [0], 13)
    book.preempt(0)
    now = book.step(now, [(1, 4)], [])
    book.hit(0, claimed)
    now = book.step(now, [(0, 34 - claimed)], [1])
    _decode(book, now, [0, 1], 5)
    return book, made


@pytest.mark.parametrize(("claimed", "block_tokens"), [(32, 16), (33, 1), (7, 1)])
def test_a_preempted_request_may_hit_its_own_blocks(claimed, block_tokens):
    book, made = _preempted(claimed, block_tokens)
    assert check(book.schedule(), made).rules == {Rule.LOST}  # the story ends early


def test_generated_tokens_are_private():
    """Another request cannot hit what a request generated, though its hashes reach that far."""
    made = instance([(0, 20, 20), (0, 60, 1)], _hashes([1], [1, 2]), prefix_caching=True)
    book = Recorder(made, 64)
    now = _decode(book, book.step(0, [(0, 20)], []), [0], 19)
    for claimed, rules in ((16, set()), (32, {Rule.PREFIX_HIT})):
        late = Recorder(made, 64, steps=list(book.steps))
        late.first, late.finish = list(book.first), list(book.finish)
        late.hit(1, claimed)
        late.step(now, [(1, 60 - claimed)], [])
        assert check(late.schedule(), made).rules == rules


def test_a_hit_may_come_before_the_first_chunk():
    """A request admitted when the step has no tokens left for it holds what it claims meanwhile."""
    made = instance(
        [(0, 17, 1), (0, 64, 1), (0, 20, 1)], _hashes([1], [], [1]), prefix_caching=True, kv_blocks=5
    )
    book = Recorder(made, 64)
    now = book.step(0, [(0, 17)], [])
    book.hit(2, 16)
    now = book.step(now, [(1, 64)], [])
    book.step(now, [(2, 4)], [])
    assert check(book.schedule(), made)
    assert check(book.schedule(), other(made, kv_blocks=4)).rules == {Rule.CAPACITY}
    assert kv_use(book.schedule(), made.requests, made.engine)[1] == 4 / 5


def test_hashes_of_a_size_that_does_not_fit_share_nothing():
    made = instance([(0, 48, 1), (0, 48, 1)], _hashes([1, 2], [1, 2], block_tokens=24), prefix_caching=True)
    book = Recorder(made, 64)
    now = book.step(0, [(0, 48)], [])
    book.hit(1, 16)
    book.step(now, [(1, 32)], [])
    assert check(book.schedule(), made).rules == {Rule.PREFIX_HIT}


def test_many_tokens_are_followed_in_batches_and_blocks(monkeypatch):
    book, made = _preempted(33, block_tokens=1)
    schedule = book.schedule()
    before = check(schedule, made)
    monkeypatch.setattr(expand, "AT_ONCE", 3)
    assert check(schedule, made) == before
    monkeypatch.setattr(prefix, "_MOST_CLAIMS", 10)
    coarse = check(schedule, made)
    assert (coarse.violations, coarse.counts) == (before.violations, before.counts)
    assert "blocks of 16 tokens" in coarse.notes[0]

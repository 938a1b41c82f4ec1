"""The prefix cache against a pool that keeps every block as vLLM does, and its rules one by one."""

from __future__ import annotations

import random
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.problem import Engine, Instance, PrefixHashes, Requests, StepTime
from optimizer.simulator import simulate
from optimizer.simulator.prefix_cache import PrefixCache, engine_keys

B = 4


def hashes_of(texts, block_tokens, *, covers_outputs=False, partial=False) -> PrefixHashes:
    """Number the distinct prefixes of full blocks (and partial last ones): equal ids mean equal prefixes."""
    numbers: dict[str, int] = {}
    lists = [
        [
            numbers.setdefault(text[:end], len(numbers))
            for end in range(block_tokens, len(text) + (block_tokens if partial else 1), block_tokens)
        ]
        for text in texts
    ]
    ids = np.array([i for own in lists for i in own], dtype=np.int64)
    return PrefixHashes(ids, np.cumsum([0, *map(len, lists)]), block_tokens, covers_outputs)


def cache_of(blocks, *texts) -> PrefixCache:
    """A pool of blocks of 4 tokens for these prompts."""
    return PrefixCache(blocks, B, hashes_of(texts, B), [len(text) for text in texts])


def prefill(cache, request, tokens) -> int:
    """Admit a request and compute its prompt; give the tokens that the cache had."""
    cached = cache.look_up(request, tokens)
    cache.admit(request, cached)
    cache.extend(request, tokens)
    return cached


def test_a_prefix_is_shared_while_its_owner_lives():
    """Full blocks can be had at once, and the second user takes only what differs."""
    cache = cache_of(10, "aaaabbbbcc", "aaaabbbbdddd")
    assert prefill(cache, 0, 10) == 0
    assert cache.free == 7
    assert cache.look_up(1, 12) == 8
    assert cache.cost(1, 8, 12) == 1
    assert prefill(cache, 1, 12) == 8
    assert cache.free == 6


@pytest.mark.parametrize(("tokens", "found"), [(4, 0), (5, 4), (8, 4), (9, 8), (12, 8)])
def test_the_last_token_is_always_computed(tokens, found):
    """All of a prompt may be cached: the block with its last token is computed anew."""
    cache = cache_of(10, "aaaabbbbcccc", "aaaabbbbcccc")
    prefill(cache, 0, 12)
    assert cache.look_up(1, tokens) == found


def test_a_hit_ends_where_the_prefix_does():
    """What follows is another text, equal blocks in it or not."""
    cache = cache_of(10, "aaaabbbbcccc", "aaaaxxxxccccd")
    prefill(cache, 0, 12)
    assert cache.look_up(1, 13) == 4


def test_what_is_freed_can_still_be_found_and_costs_a_free_block():
    """Nobody uses it, so whoever takes hold of it leaves one block less for others."""
    cache = cache_of(4, "aaaabbbb", "aaaabbbbc")
    prefill(cache, 0, 8)
    cache.release(0, 8)
    assert cache.free == 4
    assert cache.look_up(1, 9) == 8
    assert cache.cost(1, 8, 9) == 3
    prefill(cache, 1, 9)
    assert cache.free == 1


def test_the_least_recently_used_goes_first_and_of_it_the_last_block():
    """Prefixes survive longest: they are what others may share."""
    cache = cache_of(4, "aaaabbbb", "ccccdddd", "aaaabbbbx", "ccccddddx")
    prefill(cache, 0, 8)
    prefill(cache, 1, 8)
    cache.release(1, 8)
    cache.release(0, 8)
    found = []
    for _ in range(4):
        cache.take(1)
        found.append((cache.look_up(3, 9), cache.look_up(2, 9)))
    assert found == [(4, 8), (0, 8), (0, 4), (0, 0)]
    assert cache.free == 0


def test_a_hit_makes_a_block_young_again():
    """Used and freed once more, it goes behind those that were freed before."""
    cache = cache_of(3, "aaaa", "bbbb", "aaaax", "bbbbx")
    prefill(cache, 0, 4)
    prefill(cache, 1, 4)
    cache.release(0, 4)
    cache.release(1, 4)
    cache.admit(2, cache.look_up(2, 5))
    cache.release(2, 4)
    cache.take(2)
    assert (cache.look_up(2, 5), cache.look_up(3, 5)) == (4, 0)


def test_partial_blocks_are_used_first():
    """Nothing in them is worth keeping, also where older blocks are full."""
    cache = cache_of(3, "aaaa", "bbbbcc", "aaaax", "bbbbx")
    prefill(cache, 0, 4)
    cache.release(0, 4)
    prefill(cache, 1, 6)
    cache.release(1, 6)
    cache.take(1)
    assert (cache.look_up(2, 5), cache.look_up(3, 5)) == (4, 4)
    cache.take(1)
    assert (cache.look_up(2, 5), cache.look_up(3, 5)) == (0, 4)


def test_of_equal_answers_the_one_that_was_first_is_found_first():
    """The later admitted request was ahead: its block was filled first, though both are told at once."""
    text = "aaaaaaaaaaaaa"
    hashed = hashes_of([text] * 3, B, covers_outputs=True)
    cache = PrefixCache(20, B, hashed, [12] * 3)
    for request, tokens in ((0, 1), (1, 3)):
        cache.admit(request, 0)
        cache.extend(request, tokens)
    cache.publish_decoded([(0, 4), (1, 6)])
    assert cache.look_up(2, 13) == 4
    cache.release(1, 6)
    assert cache.cost(2, 4, 5) == 2  # nobody uses what is found; the other one's copy would be free
    cache.release(0, 4)


def test_a_block_given_back_is_free():
    """A token that is not decoded after all takes none."""
    cache = cache_of(2, "aaaa")
    cache.take(2)
    cache.untake()
    assert cache.free == 1


def test_memory_does_not_grow_with_the_requests_that_have_gone():
    """Only what is in the pool is kept: a hundred prompts take no more than ten did, once it is full."""
    blocks, most = 1000, 100
    hashes = PrefixHashes(np.arange(blocks * most), np.arange(most + 1) * blocks, B)
    cache = PrefixCache(blocks, B, hashes, [blocks * B] * most)
    tracemalloc.start()
    try:
        kept = []
        for request in range(most):
            prefill(cache, request, blocks * B)
            cache.release(request, blocks * B)
            kept.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert kept[-1] < 1.5 * kept[9]


def test_without_hashes_only_a_request_itself_finds_its_blocks():
    """After a preemption, those it decoded included; equal texts do not help others."""
    cache = PrefixCache(10, B, None, [6, 6])
    prefill(cache, 0, 6)
    cache.take(1)
    cache.release(0, 9)
    assert cache.look_up(0, 10) == 8
    assert cache.look_up(1, 6) == 0


def test_blocks_that_are_lost_are_noticed():
    """Used and free ones are all there are."""
    cache = cache_of(10, "aaaabb")
    prefill(cache, 0, 6)
    cache.check_integrity(2, 10)
    with pytest.raises(AssertionError, match="3 used \\+ 8 free blocks, and there are 10"):
        cache.check_integrity(3, 10)


def keys_of(trace_tokens, ids, block_tokens) -> list[int]:
    hashes = PrefixHashes(np.array(ids), np.array([0, len(ids)]), trace_tokens)
    return engine_keys(hashes, 0, block_tokens)


def test_coarse_hashes_stand_for_several_blocks_and_of_fine_ones_the_last_counts():
    """Hashes are chained: the last one says all that came before."""
    assert keys_of(16, [5, 9], 16) == [5, 9]
    assert keys_of(64, [5, 9], 16) == [20, 21, 22, 23, 36, 37, 38, 39]
    assert keys_of(4, [1, 2, 3, 4, 5, 6, 7], 8) == [2, 4, 6]
    with pytest.raises(ValueError, match="blocks of 24 and of 16 tokens do not nest"):
        keys_of(24, [1], 16)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_sizes_that_do_not_nest_are_refused_where_it_matters(prefix_caching):
    """An engine that does not share need not understand the hashes."""
    prefix = hashes_of(["a" * 30], 6)
    requests = Requests.from_columns({"prompt_tokens": [30], "output_tokens": [1]}, prefix=prefix)
    engine = Engine(
        name="toy", kv_blocks=9, block_tokens=4, prefix_caching=prefix_caching,
        step_time=StepTime.affine(base_s=1.0),
    )  # fmt: skip
    instance = Instance("x", requests, engine)
    if not prefix_caching:
        assert simulate(instance).metrics.makespan_s == 1
        return
    with pytest.raises(
        InputError, match="hashes stand for 6 tokens and the engine's blocks hold 4"
    ) as caught:
        simulate(instance)
    assert caught.value.field == "block_tokens"


@pytest.mark.parametrize(("covers_outputs", "hit"), [(True, 12), (False, 8)])
def test_an_answer_is_found_in_the_next_turn_where_hashes_cover_it(covers_outputs, hit):
    """The next prompt holds the last one and its answer; the answer's last token was never computed."""
    first, answer = "aaaabbbbc", "xyz"  # with y, 11 tokens are computed; z is sampled and not fed back
    texts = [first + answer, first + answer + "?"]
    if covers_outputs:
        texts = [first + answer + "!!", first + answer + "!!?"]
    answers = [len(texts[0]) - len(first), 1]
    prompts = [texts[0][: len(first)], texts[1]]
    hashed = [texts[0], texts[1] + "e"] if covers_outputs else prompts
    requests = Requests.from_columns(
        {"arrival_s": [0, 50], "prompt_tokens": [len(p) for p in prompts], "output_tokens": answers},
        prefix=hashes_of(hashed, B, covers_outputs=covers_outputs),
    )
    engine = Engine(
        name="toy", kv_blocks=20, block_tokens=B, prefix_caching=True, step_time=StepTime.affine(base_s=1.0)
    )
    schedule = simulate(Instance("turns", requests, engine)).schedule
    assert list(zip(schedule.cached_request, schedule.cached_tokens, strict=True)) == [(1, hit)]


# ---- every block by itself


class Pool:
    """Blocks with numbers in one queue of free ones, as in vLLM's block pool: nothing is counted in bulk."""

    def __init__(self, blocks, keys) -> None:
        self.queue = list(range(blocks))
        self.keys = keys
        self.key: dict[int, object] = {}
        self.by_key: dict[object, list[int]] = {}
        self.users = [0] * blocks
        self.table: dict[int, list[int]] = {}

    def hits(self, request, tokens) -> list[int]:
        found = []
        for key in self.keys[request]:
            if (len(found) + 1) * B >= tokens or not self.by_key.get(key):
                break
            found.append(self.by_key[key][0])
        return found

    def cost(self, request, tokens) -> int:
        hits = self.hits(request, tokens)
        return -(-tokens // B) - sum(self.users[block] > 0 for block in hits)

    def admit(self, request, tokens) -> int:
        self.table[request] = self.hits(request, tokens)
        for block in self.table[request]:
            if not self.users[block]:
                self.queue.remove(block)
            self.users[block] += 1
        return len(self.table[request]) * B

    def grow(self, request, tokens) -> None:
        table = self.table[request]
        while len(table) * B < tokens:
            block = self.queue.pop(0)
            if block in self.key:
                self.by_key[self.key.pop(block)].remove(block)
            self.users[block] = 1
            table.append(block)

    def publish(self, request, tokens) -> None:
        """Full blocks, the last one first as in the cache: the order among one request's does not matter."""
        for place in range(tokens // B):
            block = self.table[request][place]
            if block not in self.key:
                self.key[block] = self.keys[request][place]
                self.by_key.setdefault(self.key[block], []).append(block)

    def release(self, request) -> None:
        for block in reversed(self.table.pop(request)):
            self.users[block] -= 1
            if not self.users[block]:
                self.queue.insert(len(self.queue) if block in self.key else 0, block)


@dataclass
class Life:
    """What a request has computed."""

    tokens: int = 0
    decoding: bool = False


class Both:
    """The cache and the pool, side by side, under the same requests."""

    def __init__(self, blocks, texts, prompts, hashed) -> None:
        self.blocks, self.texts, self.prompts, self.covers = blocks, texts, prompts, hashed.covers_outputs
        known = texts if self.covers else [text[:p] for text, p in zip(texts, prompts, strict=True)]
        tokens = [len(text) - self.covers for text in known]
        self.cache = PrefixCache(blocks, B, hashed, tokens)
        self.pool = Pool(blocks, [self._keys(r, known, tokens, hashed) for r in range(len(texts))])
        self.lives: dict[int, Life] = {}
        self.done = [0] * len(texts)

    def _keys(self, request, known, tokens, hashed) -> list[object]:
        """By place: all of the text that the block's hash speaks of, or the request's own name."""
        keys: list[object] = []
        per_hash = hashed.block_tokens
        for end in range(B, len(self.texts[request]) + 1, B):
            spoken = -(-end // per_hash) * per_hash
            shared = end <= tokens[request] and spoken <= len(hashed.of(request)) * per_hash
            keys.append((known[request][:spoken], end) if shared else (request, end))
        return keys

    def tell(self) -> None:
        """Make known what was decoded, as the engine's state does before anybody looks."""
        if self.covers:
            self.cache.publish_decoded([(r, life.tokens) for r, life in self.lives.items() if life.decoding])

    def admit(self, request) -> None:
        target = max(self.prompts[request], self.done[request])
        self.tell()
        cached = self.cache.look_up(request, target)
        cost = self.cache.cost(request, cached, target)
        assert cost == self.pool.cost(request, target)
        if cost > self.cache.free:
            return
        self.cache.admit(request, cached)
        assert self.pool.admit(request, target) == cached
        self.lives[request] = Life(cached)

    def chunk(self, request, tokens) -> None:
        life = self.lives[request]
        target = max(self.prompts[request], self.done[request])
        tokens = min(tokens, target - life.tokens)
        if -(-(life.tokens + tokens) // B) - -(-life.tokens // B) > self.cache.free:
            self.release(request)
            return
        life.tokens += tokens
        self.tell()
        self.cache.extend(request, life.tokens)
        self.pool.grow(request, life.tokens)
        self.pool.publish(request, life.tokens)
        life.decoding = life.tokens == target

    def decode(self) -> None:
        """One step of all who decode, in order of admission; the last token of a text is never fed back."""
        for request in [r for r, life in self.lives.items() if life.tokens >= len(self.texts[r]) - 1]:
            self.release(request)
        decoding = {r: life for r, life in self.lives.items() if life.decoding}
        need = sum(life.tokens % B == 0 for life in decoding.values())
        if need > self.cache.free:
            return
        self.cache.take(need)
        for request, life in decoding.items():
            life.tokens += 1
            self.pool.grow(request, life.tokens)
        for request, life in decoding.items():
            self.pool.publish(request, life.tokens)

    def release(self, request) -> None:
        self.tell()
        life = self.lives.pop(request)
        self.done[request] = max(self.done[request], life.tokens)
        self.cache.release(request, life.tokens)
        self.pool.release(request)

    def agree(self, *, on_hits) -> None:
        used = {block for table in self.pool.table.values() for block in table}
        assert self.cache.free == len(self.pool.queue)
        self.cache.check_integrity(len(used), self.blocks)
        if on_hits:
            self.tell()
            for request in set(range(len(self.texts))) - self.lives.keys():
                for tokens in range(1, len(self.texts[request]) + 1):
                    assert self.cache.look_up(request, tokens) == len(self.pool.hits(request, tokens)) * B


@st.composite
def pools(draw) -> Both:
    """Texts that begin alike and part somewhere, hashes in any size that nests, a pool that is soon full."""
    base = draw(st.text("ab", min_size=1, max_size=30))
    texts = [
        base[: draw(st.integers(0, len(base)))] + draw(st.text("xy", min_size=2, max_size=9))
        for _ in range(draw(st.integers(1, 4)))
    ]
    texts += draw(st.lists(st.sampled_from(texts), max_size=3))
    prompts = [draw(st.integers(1, len(text) - 1)) for text in texts]
    covers = draw(st.booleans())
    hashed = hashes_of(
        texts if covers else [text[:p] for text, p in zip(texts, prompts, strict=True)],
        draw(st.sampled_from([1, 2, 4, 8])),
        covers_outputs=covers,
        partial=draw(st.booleans()),
    )
    return Both(draw(st.integers(8, 30)), texts, prompts, hashed)


@settings(deadline=None, max_examples=150)
@given(pools(), st.integers(0, 2**32))
def test_the_cache_is_the_pool(both, seed):
    """Same hits, same costs, same free blocks, whatever is done; used and free are all there are."""
    chance = random.Random(seed)
    for _ in range(150):
        what, request = chance.choice("aaaacccddddddlr"), chance.randrange(len(both.texts))
        if what == "a" and request not in both.lives:
            both.admit(request)
        elif what == "c" and request in both.lives and not both.lives[request].decoding:
            both.chunk(request, chance.randint(1, 12))
        elif what == "d":
            both.decode()
        elif what == "r" and request in both.lives:
            both.release(request)
        both.agree(on_hits=what == "l")

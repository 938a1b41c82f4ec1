"""A paged KV pool with prefix caching: hashed blocks, reference counts, least recently used goes first.

As vLLM keeps it: a full block is known by the chained hash of everything up to its end; a freed block keeps
its content until it is needed, unless it is not full: then it is the next to be used; a request frees its
last block first, so that prefixes survive longest; the last token of a prompt is always computed.

Only what others may share is an object here. The blocks that a request fills while it decodes are its own;
they are a count until it leaves (see `EngineState`), because which of the free blocks they are does not
matter: blocks are taken from the head of one queue, whoever asks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from optimizer.problem.requests import PrefixHashes

Key = int | tuple[int, int]
"""Of a block: its hash in the trace's numbering, or (request, index) where nobody else can have it."""


class _Block:
    __slots__ = ("key", "users")

    def __init__(self) -> None:
        self.key: Key | None = None
        self.users = 1


class PrefixCache:
    """The pool. Blocks of a request: a list as far as it prefilled, a count for what it decoded.

    Parameters
    ----------
    blocks, block_tokens
        Size of the pool, and tokens per block.
    hashes, hashed_tokens
        Of the requests; `hashed_tokens`: how many tokens of each can be known by a hash. Without hashes no
        prompt shares anything, but a preempted request may find its own blocks.

    Attributes
    ----------
    free
        Blocks that nobody uses now, cached ones included.
    """

    def __init__(
        self, blocks: int, block_tokens: int, hashes: PrefixHashes | None, hashed_tokens: Sequence[int]
    ) -> None:
        self.block_tokens = block_tokens
        self._hashed_tokens = hashed_tokens
        self._hashes = hashes
        self._fresh = blocks
        self._freed: OrderedDict[_Block, None] = OrderedDict()
        self._cached: dict[Key, dict[_Block, None]] = {}
        self._held: dict[int, list[_Block]] = {}
        self._keys: dict[int, list[int]] = {}

    @property
    def free(self) -> int:
        """Blocks that nobody uses now, cached ones included."""
        return self._fresh + len(self._freed)

    def _key(self, request: int, index: int) -> Key:
        keys = self._keys.get(request)
        if keys is None:
            full = self._hashed_tokens[request] // self.block_tokens
            found = [] if self._hashes is None else engine_keys(self._hashes, request, self.block_tokens)
            keys = self._keys[request] = found[:full]
        return keys[index] if index < len(keys) else (request, index)

    def look_up(self, request: int, tokens: int) -> int:
        """Give how many of a request's first `tokens` tokens are cached: full blocks, never the last token."""
        hits = 0
        while (hits + 1) * self.block_tokens < tokens and self._key(request, hits) in self._cached:
            hits += 1
        return hits * self.block_tokens

    def cost(self, request: int, cached: int, tokens: int) -> int:
        """Give the free blocks that admitting a request takes: new ones, and cached ones nobody uses."""
        hits = cached // self.block_tokens
        idle = sum(next(iter(self._cached[self._key(request, i)])).users == 0 for i in range(hits))
        return -(-tokens // self.block_tokens) - hits + idle

    def admit(self, request: int, cached: int) -> None:
        """Take hold of the cached blocks at the start of a request."""
        held = []
        for index in range(cached // self.block_tokens):
            block = next(iter(self._cached[self._key(request, index)]))
            if block.users == 0:
                del self._freed[block]
            block.users += 1
            held.append(block)
        self._held[request] = held

    def extend(self, request: int, tokens: int) -> None:
        """Give a prefilling request blocks for its first `tokens` tokens; full ones can be shared at once."""
        held = self._held[request]
        for _ in range(-(-tokens // self.block_tokens) - len(held)):
            held.append(self._take())
        self._publish_full(request, held, tokens)

    def _publish_full(self, request: int, held: list[_Block], tokens: int) -> None:
        index = tokens // self.block_tokens - 1
        while index >= 0 and held[index].key is None:
            self._publish(held[index], self._key(request, index))
            index -= 1

    @property
    def shares_outputs(self) -> bool:
        """Whether others can have what a request decoded."""
        return self._hashes is not None and self._hashes.covers_outputs

    def publish_decoded(self, contexts: Sequence[tuple[int, int]]) -> None:
        """Make the blocks known that decoding requests have filled; they were taken as they were needed.

        Parameters
        ----------
        contexts
            (request, tokens in the cache) of all that decode, in order of admission.

        Of equal blocks the one that was filled first is found first, so they are made known in that order.
        """
        b = self.block_tokens
        filled = []
        for place, (request, tokens) in enumerate(contexts):
            held = self._held[request]
            held += [_Block() for _ in range(-(-tokens // b) - len(held))]
            index = tokens // b - 1
            while index >= 0 and held[index].key is None:
                filled.append((-(tokens - (index + 1) * b), place, request, index))
                index -= 1
        for _, _, request, index in sorted(filled):
            self._publish(self._held[request][index], self._key(request, index))

    def take(self, count: int) -> None:
        """Use up free blocks for tokens that are decoded."""
        for _ in range(count):
            self._take()

    def untake(self) -> None:
        """Give back one block that was taken for a token that is not decoded after all."""
        self._fresh += 1

    def withdraw(self, request: int, tokens: int) -> None:
        """Forget what was made known of a request beyond its first `tokens` tokens: it is not decoded after all."""
        held = self._held[request]
        for block in held[tokens // self.block_tokens :]:
            self._forget(block)
        del held[-(-tokens // self.block_tokens) :]

    def release(self, request: int, tokens: int) -> None:
        """Free all blocks of a request that holds `tokens` tokens, last block first."""
        held = self._held.pop(request)
        for index in range(-(-tokens // self.block_tokens) - 1, len(held) - 1, -1):
            self._give_back(_Block(), request, index, tokens)
        for index in range(len(held) - 1, -1, -1):
            self._give_back(held[index], request, index, tokens)
        # Most requests do not come back; who was thrown out has its keys made again.
        self._keys.pop(request, None)

    def _give_back(self, block: _Block, request: int, index: int, tokens: int) -> None:
        if block.key is None and (index + 1) * self.block_tokens <= tokens:
            self._publish(block, self._key(request, index))
        block.users -= 1
        if block.users == 0:
            self._freed[block] = None
            if block.key is None:
                self._freed.move_to_end(block, last=False)  # nothing worth keeping in it: it is used up first

    def _publish(self, block: _Block, key: Key) -> None:
        block.key = key
        self._cached.setdefault(key, {})[block] = None

    def _take(self) -> _Block:
        if self._fresh:
            self._fresh -= 1
            return _Block()
        block, _ = self._freed.popitem(last=False)
        self._forget(block)
        block.users = 1
        return block

    def _forget(self, block: _Block) -> None:
        if block.key is None:
            return
        same = self._cached[block.key]
        del same[block]
        if not same:
            del self._cached[block.key]
        block.key = None

    def check_integrity(self, used: int, blocks: int) -> None:
        """Assert that used and free blocks are all there are."""
        if used + self.free != blocks:
            raise AssertionError(f"{used} used + {self.free} free blocks, and there are {blocks}")


def engine_keys(hashes: PrefixHashes, request: int, block_tokens: int) -> list[int]:
    """Give the hashes of a prompt's full engine blocks from the hashes of a trace's (coarser or finer) blocks.

    A coarse hash stands for several engine blocks; of several fine ones the last says it all, since hashes
    are chained.

    Raises
    ------
    ValueError
        If neither block size is a multiple of the other (checked when an engine is set up).
    """
    ids = hashes.of(request).tolist()
    if hashes.block_tokens % block_tokens == 0:
        parts = hashes.block_tokens // block_tokens
        return [i * parts + part for i in ids for part in range(parts)]
    if block_tokens % hashes.block_tokens == 0:
        step = block_tokens // hashes.block_tokens
        return [int(i) for i in ids[step - 1 :: step]]
    raise ValueError(f"blocks of {hashes.block_tokens} and of {block_tokens} tokens do not nest")

"""What the loop knows of the engine: who waits, who runs, how far each one is, and which KV blocks that takes.

The engine pages its KV as vLLM does: a request whose KV holds c tokens has ceil(c / block) blocks. A step counts as
executed as soon as it is composed, so that the next one can be composed while it runs; what the engine reports
later corrects that. Requests that decode advance together: each remembers its tokens less a common decode clock, and
how many of them need a block in the next step is a count by offset within a block. So a step costs the same
however many requests decode.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import log

from optimizer.online.messages import Request
from optimizer.problem.engine import Engine

WAITING, PREFILL, DECODE, ENDED, GONE = range(5)
"""Phases: holds nothing; its prompt is being computed; decodes; has all its tokens, which nobody confirmed yet; forgotten."""

_UNLIMITED = 1 << 60


class Entry:
    """A request that is not finished.

    Attributes
    ----------
    request, arrival_s
        As submitted.
    serial
        Ascending by submission; an id that is used again has another serial.
    born
        Number of the step that is composed next when it is submitted: earlier steps knew another one of its id.
    cap
        Most output tokens.
    phase
        See `WAITING` and the others.
    known
        Prompt and output tokens so far; while it decodes: less the decode clock.
    computed
        Tokens in the KV cache, unless it decodes; see `State.context`.
    cached
        Tokens at the start of its prompt that it need not compute when it is admitted: believed, not known.
    life
        Number of the step that admitted it last; -1: none did yet.
    ended
        Number of the step in which it reached its cap.
    key
        Its place: smaller goes first.
    due_s
        When its first token is wanted.
    mu, sigma
        What is believed of its output: a log-normal law.
    most
        Tokens of KV that it will hardly exceed.
    preemptions
        How often it was thrown out.
    """

    __slots__ = (
        "arrival_s", "born", "cached", "cap", "computed", "due_s", "ended", "first_token_s", "key", "known", "life", "most", "mu",
        "phase", "preemptions", "request", "serial", "sigma",
    )  # fmt: skip

    def __init__(
        self, request: Request, serial: int, born: int, arrival_s: float, cap: int, block_tokens: int = 0
    ) -> None:
        self.request, self.serial, self.born, self.arrival_s, self.cap = (
            request,
            serial,
            born,
            arrival_s,
            cap,
        )
        self.phase = WAITING
        self.known = request.prompt_tokens
        # The last token of a prompt is computed in any case: without it there is nothing to sample from.
        self.cached = min(request.cached_tokens, request.prompt_tokens - 1)
        self.computed = self.preemptions = 0
        self.life = self.ended = -1
        self.key = self.due_s = arrival_s
        # Until a rule has an opinion: nothing is certain but the cap.
        self.mu, self.sigma = log(cap), 0.0
        self.most = float(request.prompt_tokens + cap + block_tokens)
        self.first_token_s: float | None = None


class State:
    """The engine as the loop believes it to be after all steps that were composed.

    Parameters
    ----------
    engine
        Limits and KV geometry.

    Attributes
    ----------
    entries, by_serial
        All requests that are not finished, by id and by serial; in order of submission.
    prefilling, decoding, ended
        Those that hold a seat, by serial (`decoding`: by id), in order of admission.
    used_blocks
        KV blocks that they hold, after all composed steps.
    clock
        Decode steps so far.
    number
        Of the step that is composed next.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.block_tokens, self.blocks = engine.block_tokens, engine.kv_blocks
        self.seats, self.token_budget = engine.max_num_seqs, engine.max_num_batched_tokens
        self.entries: dict[str, Entry] = {}
        self.by_serial: dict[int, Entry] = {}
        self.prefilling: dict[int, Entry] = {}
        self.decoding: dict[str, Entry] = {}
        self.ended: dict[int, Entry] = {}
        self.used_blocks = self.clock = self.context_sum = 0
        self.number = 0
        self.serials = 0
        self._offsets = [0] * engine.block_tokens
        self._caps: list[tuple[int, int, str]] = []

    # ---- questions

    def cap_of(self, request: Request) -> int:
        """Give the most output tokens that the client wants and the engine has room for; below 1: it cannot run."""
        # The last token is sampled and never computed, so it needs no room in the KV cache.
        room = self.blocks * self.block_tokens - request.prompt_tokens + 1
        if self.engine.max_model_len is not None:
            room = min(room, self.engine.max_model_len - request.prompt_tokens)
        return min(room, request.max_output_tokens or _UNLIMITED)

    def context(self, entry: Entry) -> int:
        """Give the tokens that a request has in the KV cache."""
        return entry.known + self.clock - 1 if entry.phase == DECODE else entry.computed

    def tokens(self, entry: Entry) -> int:
        """Give the tokens of its prompt and its output so far."""
        return entry.known + self.clock if entry.phase == DECODE else entry.known

    def generated(self, entry: Entry) -> int:
        """Give its output tokens so far."""
        return self.tokens(entry) - entry.request.prompt_tokens

    def left(self, entry: Entry) -> int:
        """Give the tokens that it must still compute before its next token is sampled."""
        return entry.known - entry.computed

    def skipped(self, entry: Entry) -> int:
        """Give the tokens that its next chunk has for nothing: what is believed to be cached, before anything is computed."""
        return 0 if entry.computed else entry.cached

    def work(self, entry: Entry) -> int:
        """Give the tokens that the engine must compute before the next token of a request is sampled, as is believed."""
        return entry.known - (entry.computed or entry.cached)

    def blocks_of(self, tokens: int) -> int:
        """Give the blocks that a request of that many tokens holds."""
        return -(-tokens // self.block_tokens)

    @property
    def free_blocks(self) -> int:
        """KV blocks that nobody holds; below 0 where the engine computed more than it was asked to."""
        return self.blocks - self.used_blocks

    @property
    def taken_seats(self) -> int:
        """Requests that run."""
        return len(self.prefilling) + len(self.decoding) + len(self.ended)

    @property
    def waiting(self) -> int:
        """How many hold nothing."""
        return len(self.entries) - self.taken_seats

    def decode_need(self, steps: int = 1) -> int:
        """Give the blocks that the next decode steps take, together."""
        b = self.block_tokens
        first = self.clock % b
        if steps == 1:
            return self._offsets[first]
        cycles, rest = divmod(steps, b)
        return cycles * len(self.decoding) + sum(self._offsets[(first + i) % b] for i in range(rest))

    def running(self) -> list[Entry]:
        """Give all that hold a seat."""
        return [*self.prefilling.values(), *self.decoding.values(), *self.ended.values()]

    def next_cap(self) -> int:
        """Give the decode clock at which somebody may reach its cap."""
        return self._caps[0][0] if self._caps else _UNLIMITED

    # ---- verbs

    def add(self, request: Request, arrival_s: float, cap: int) -> Entry:
        """Take in a request; its id must be free."""
        entry = Entry(request, self.serials, self.number, arrival_s, cap, self.block_tokens)
        self.serials += 1
        self.entries[request.id] = self.by_serial[entry.serial] = entry
        return entry

    def admit(self, entry: Entry) -> None:
        """Give a waiting request a seat; its chunks follow with `compute`."""
        entry.phase = PREFILL
        entry.life = self.number
        self.prefilling[entry.serial] = entry

    def chunk_need(self, entry: Entry, tokens: int) -> int:
        """Give the blocks that a chunk takes."""
        b = self.block_tokens
        return -(-(entry.computed + tokens) // b) + (-entry.computed // b)

    def compute(self, entry: Entry, tokens: int) -> bool:
        """Compute a chunk of a prompt; say whether an output token is sampled by it."""
        self.used_blocks += self.chunk_need(entry, tokens)
        entry.computed += tokens
        if entry.computed < entry.known:
            return False
        del self.prefilling[entry.serial]
        entry.known += 1
        self._seat(entry)
        return True

    def decode(self, steps: int = 1) -> None:
        """Let every decoding request decode a token; the caller has seen to the blocks.

        Several steps at once are for rollouts, up to the next cap (`next_cap`) at most.
        """
        self.used_blocks += self.decode_need(steps)
        self.context_sum += steps * len(self.decoding)
        self.clock += steps
        caps, clock = self._caps, self.clock
        while caps and caps[0][0] <= clock:
            _, serial, name = heappop(caps)
            entry = self.decoding.get(name)
            # An entry of the heap may be left over from an earlier stay among the decoding ones.
            if entry is not None and entry.serial == serial and self.generated(entry) >= entry.cap:
                self._leave(entry)
                self._end(entry)

    def preempt(self, entry: Entry) -> None:
        """Take a running request out: its KV is lost, and it waits again."""
        self._unseat(entry)
        self.used_blocks -= self.blocks_of(entry.computed)
        entry.computed = 0
        entry.phase = WAITING
        entry.preemptions += 1

    def hold(self, entry: Entry, until: int) -> None:
        """Let a request that has all its tokens keep its seat and its blocks until a step is reported."""
        if entry.phase != ENDED:
            self._unseat(entry)
            self._end(entry)
        entry.ended = until

    def remove(self, entry: Entry) -> None:
        """Forget a request, whatever it does; its seat and its blocks are free."""
        if entry.phase != WAITING:
            self._unseat(entry)
            self.used_blocks -= self.blocks_of(entry.computed)
        entry.phase = GONE
        del self.entries[entry.request.id], self.by_serial[entry.serial]

    def move(self, entry: Entry, known: int, computed: int) -> None:
        """Put a request where the engine says that it is.

        Parameters
        ----------
        known
            Its tokens; cut to its prompt at least, and to its cap.
        computed
            Of them in the KV cache; cut to one less at most. For a request that waits: none.
        """
        prompt = entry.request.prompt_tokens
        known = min(max(known, prompt), prompt + entry.cap)
        if entry.phase == WAITING:
            entry.known = known
            return
        self._unseat(entry)
        computed = max(0, min(computed, known - 1))
        self.used_blocks += self.blocks_of(computed) - self.blocks_of(entry.computed)
        entry.known, entry.computed = known, computed
        if known > prompt and computed == known - 1:
            self._seat(entry)
        else:
            entry.phase = PREFILL
            self.prefilling[entry.serial] = entry

    # ---- how the phases are kept

    def _seat(self, entry: Entry) -> None:
        """Its prompt is computed and a token sampled: it decodes, or that was its last."""
        if entry.known - entry.request.prompt_tokens >= entry.cap:
            self._end(entry)
            return
        entry.phase = DECODE
        self.context_sum += entry.computed
        entry.known -= self.clock
        self._offsets[(1 - entry.known) % self.block_tokens] += 1
        self.decoding[entry.request.id] = entry
        heappush(
            self._caps,
            (entry.cap + entry.request.prompt_tokens - entry.known, entry.serial, entry.request.id),
        )
        if len(self._caps) > 64 + 4 * len(self.decoding):
            self._forget_old_caps()

    def _end(self, entry: Entry) -> None:
        entry.phase = ENDED
        entry.ended = self.number
        self.ended[entry.serial] = entry

    def _leave(self, entry: Entry) -> None:
        """Take a request out of the decoding ones."""
        del self.decoding[entry.request.id]
        self._offsets[(1 - entry.known) % self.block_tokens] -= 1
        entry.known += self.clock
        entry.computed = entry.known - 1
        self.context_sum -= entry.computed

    def _unseat(self, entry: Entry) -> None:
        if entry.phase == DECODE:
            self._leave(entry)
        elif entry.phase == PREFILL:
            del self.prefilling[entry.serial]
        else:
            del self.ended[entry.serial]

    def _forget_old_caps(self) -> None:
        self._caps = [
            (entry.cap + entry.request.prompt_tokens - entry.known, entry.serial, name)
            for name, entry in self.decoding.items()
        ]
        heapify(self._caps)

"""What a policy sees of the engine between two steps, and the verbs it has."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.errors import PolicyError
from optimizer.problem.columns import Floats
from optimizer.problem.engine import Engine
from optimizer.problem.requests import Requests
from optimizer.simulator.decoding import UNLIMITED, DecodeGroup
from optimizer.simulator.prefix_cache import PrefixCache
from optimizer.simulator.queues import FifoQueue, WaitingQueue
from optimizer.units import seconds, ticks

NEVER = 1 << 120
"""A moment in ticks after all others."""


@dataclass(frozen=True, slots=True)
class VisibleRequests:
    """What any scheduler may know of requests, beside their prompts: all columns of `Requests` but the truth."""

    ids: tuple[str, ...] | None
    weight: Floats | None
    deadline_s: Floats | None
    ttft_slo_s: Floats | None
    tpot_slo_s: Floats | None
    tenant: tuple[str, ...] | None

    @classmethod
    def of(cls, requests: Requests) -> VisibleRequests:
        """Leave out what is hidden."""
        return cls(*(getattr(requests, name) for name in cls.__slots__))

    def name(self, request: int) -> str:
        """Give the id of a request, by its row."""
        return str(request) if self.ids is None else self.ids[request]


class EngineState(DecodeGroup):
    """The engine between two steps, as a policy sees it, and what a policy may do to it.

    A policy composes the next step: it appends (request, tokens) to `chunks` through `schedule`, admits,
    preempts, holds back. All requests in `decoding` decode one token unless `stalled` is set.

    Attributes
    ----------
    now_s
        Start of the step to compose, in seconds.
    waiting
        Requests that arrived and hold nothing, in the policy's own order.
    running
        Requests that were admitted and are not finished, in order of admission.
    prefilling
        Those of them whose prompt is not computed yet, in order of admission.
    num_decoding
        How many decode.
    leaving
        Requests that are finished while an asynchronous engine does not know it yet: their seats and blocks are
        still taken (see `free_seats`).
    held
        Requests that keep their KV and do not decode until they are resumed.
    left
        By request: prompt tokens still to compute before its next token (after a preemption: prompt and what
        it had generated).
    computed
        By request: tokens in the KV cache, for requests that do not decode; see `context`.
    admission
        By request: a number that grows with every admission.
    arrived
        Requests that have arrived: those numbered below it, of which the engine knows.
    token_budget, max_num_seqs, block_tokens, blocks
        The engine's limits.
    tight
        Whether KV blocks might run out in this step. When False, no check is needed for a step of up to
        `most_per_step` tokens: the token budget and the longest request.
    chunks
        The prefill part of the step being composed: (request, tokens).
    stalled
        Set by a policy: decodes wait in this step (an exclusive prefill step).
    hold
        Set by a policy: how many times in a row the composed step may be repeated as it is. 0, the default,
        means once for a step with chunks, and without limit for one that only decodes. The simulator asks
        again after a finish anyhow.
    deaf
        Set by a policy: arrivals cannot change its mind before the run is over.
    wake
        Set by a policy: ask again at this moment (ticks), whatever happens.
    prompt_tokens, arrival, estimate, low, high, cap
        What may be known of a request: prompt tokens, arrival in ticks, and of its output the point estimate
        (None: unknown), the interval, and the cap that the client asked for.
    model_len
        Longest sequence that the engine is set up for, in tokens: the same for all requests.
    step_time
        The engine's model of step times, which its card makes public.
    """

    __slots__ = (
        "_admissions", "_taken", "_took", "arrival", "arrived", "blocks", "cache", "cap", "chunks", "deaf", "estimate",
        "held", "high", "hold", "idle_tokens", "leaving", "left", "low", "max_num_seqs", "model_len",
        "most_per_step", "now", "pages", "preemptions", "preempts", "prefilling", "requests", "running", "safe_tokens",
        "stalled", "step_time", "tight", "token_budget", "waiting", "wake",
    )  # fmt: skip

    def __init__(
        self,
        engine: Engine,
        requests: Requests,
        arrival: list[int],
        *,
        block_tokens: int,
        pages: bool = True,
        most_per_step: int,
        cap: list[int],
        model_len: int,
    ) -> None:
        super().__init__(requests, block_tokens)
        self.requests = VisibleRequests.of(requests)
        self.arrival, self.cap, self.model_len = arrival, cap, model_len
        self.most_per_step = most_per_step if pages else UNLIMITED
        known = requests.known
        self.estimate: list[float] | None = None if known is None else known.estimate.tolist()
        self.low: list[int] | None = None if known is None else known.low.tolist()
        self.high: list[int] | None = None if known is None else known.high.tolist()
        self.blocks = engine.kv_tokens // block_tokens
        self.step_time = engine.step_time
        self.token_budget, self.max_num_seqs = engine.max_num_batched_tokens, engine.max_num_seqs
        self.pages, self.preempts = pages, engine.preemption != "none"
        self.cache = None
        if pages and engine.prefix_caching:
            hashes = requests.prefix
            hashed = self.prompt_tokens if hashes is None else hashes.hashed_tokens(requests).tolist()
            self.cache = PrefixCache(self.blocks, block_tokens, hashes, hashed)
        # Below this many tokens in the cache, no rounding up to blocks can make a step run out of them.
        self.safe_tokens = UNLIMITED
        if pages:
            spare = (block_tokens - 1) * engine.max_num_seqs + most_per_step
            self.safe_tokens = -1 if self.cache else max(-1, self.blocks * block_tokens - spare)
        self.now = self.idle_tokens = self.preemptions = self._taken = self._admissions = self.arrived = 0
        self.running: dict[int, None] = {}
        self.prefilling: list[int] = []
        self.held: dict[int, None] = {}
        self.leaving: dict[int, None] = {}
        self.left = self.prompt_tokens.copy()
        self.chunks: list[tuple[int, int]] = []
        self.stalled = self.deaf = self.tight = self._took = False
        self.hold, self.wake = 0, NEVER
        self.waiting: WaitingQueue = FifoQueue()

    # ---- what a policy may ask

    @property
    def now_s(self) -> float:
        """Start of the step to compose, in seconds."""
        return seconds(self.now)

    def wake_at(self, moment_s: float) -> None:
        """Ask to be called again at a moment, in seconds, at the latest."""
        self.wake = ticks(moment_s)

    def blocks_of(self, request: int) -> int:
        """Give the KV blocks that the request holds, shared ones included."""
        return -(-self.context(request) // self.block_tokens)

    def length_guess(self, request: int) -> float:
        """Give the best guess of the request's output tokens: the estimate, or the cap where nothing is known."""
        return self.cap[request] if self.estimate is None else self.estimate[request]

    def free_seats(self) -> int:
        """Give how many more requests may run."""
        return self.max_num_seqs - len(self.running) - len(self.leaving)

    def held_tokens(self) -> int:
        """Give the tokens in the KV cache, shared ones counted for each request."""
        return self.context_sum + self.idle_tokens

    def free_blocks(self) -> int:
        """Give the KV blocks that are free, less what the step being composed takes."""
        if self.cache is not None:
            return self.cache.free
        return self.blocks - self.used_blocks() - self._taken

    def used_blocks(self) -> int:
        """Give the KV blocks held between steps (without prefix caching)."""
        b, clock = self.block_tokens, self.clock
        rounding = sum(count * ((offset - clock) % b) for offset, count in enumerate(self._offsets) if count)
        used = (self.context_sum + rounding) // b
        for request in self.prefilling:
            used -= -self.computed[request] // b
        for request in (*self.held, *self.leaving):
            used -= -self.computed[request] // b
        return used

    def chunk_need(self, request: int, tokens: int) -> int:
        """Give the blocks that a chunk of an admitted request takes."""
        c, b = self.computed[request], self.block_tokens
        return -(-(c + tokens) // b) + (-c // b)

    def admission_need(self, request: int, tokens: int, cached: int = 0) -> int:
        """Give the free blocks that admitting a request takes, `cached` tokens of it found in the cache."""
        if self.cache is not None:
            return self.cache.cost(request, cached, cached + tokens)
        return -(-tokens // self.block_tokens)

    def cached_tokens(self, request: int) -> int:
        """Give how many tokens of a waiting request the prefix cache has."""
        if self.cache is None:
            return 0
        self.publish_decoded()
        return self.cache.look_up(request, self.left[request])

    # ---- what a policy may do

    def admit(self, request: int, cached: int = 0) -> None:
        """Give a request a seat; it must have left `waiting`. Its chunks follow with `schedule`."""
        running = self.running
        if (
            request in running
            or request >= self.arrived
            or len(running) + len(self.leaving) >= self.max_num_seqs
        ):
            raise self._refusal(request, "be admitted", self._why_not_admitted(request))
        running[request] = None
        self.prefilling.append(request)
        self._admissions += 1
        self.admission[request] = self._admissions
        if self.cache is not None:
            self.cache.admit(request, cached)
            if cached:
                self.computed[request] = cached
                self.left[request] -= cached
                self.idle_tokens += cached
                self.recorder.cached(request, cached)

    def _why_not_admitted(self, request: int) -> str:
        if request in self.running:
            return "it runs already"
        if request >= self.arrived:
            return "it has not arrived yet; admit only who is in `waiting`"
        return f"all {self.max_num_seqs} seats are taken"

    def _refusal(self, request: int, what: str, why: str) -> PolicyError:
        name = self.requests.name(request)
        return PolicyError(f"request {name} cannot {what} at {self.now_s:.6f} s: {why}")

    def schedule(self, request: int, tokens: int) -> None:
        """Let an admitted request compute `tokens` tokens of its prompt in this step."""
        if not 0 < tokens <= self.left[request] or request not in self.running:
            raise PolicyError(
                f"a chunk of {tokens} tokens for request {self.requests.name(request)} at {self.now_s:.6f} s: it has "
                f"{self.left[request]} left and is {'' if request in self.running else 'not '}admitted"
            )
        if self.tight:
            need = self.chunk_need(request, tokens)
            if self.cache is None:
                self._taken += need
            else:
                if need > self.cache.free:
                    why = f"that takes {need} KV blocks, and {self.cache.free} are free; preempt, or schedule less"
                    raise self._refusal(request, f"compute {tokens} tokens", why)
                self.publish_decoded()
                self.cache.extend(request, self.computed[request] + tokens)
        self.chunks.append((request, tokens))

    def take_decode_blocks(self) -> None:
        """Put the blocks that decodes need in this step aside, before prompts get theirs."""
        need = self.decode_need()
        if self.cache is not None:
            if need > self.cache.free:
                first = next(request for request in self.running if self.is_decoding(request))
                raise PolicyError(
                    f"the {self.num_decoding} decodes at {self.now_s:.6f} s, from request {self.requests.name(first)} "
                    f"on, take {need} KV blocks, and {self.cache.free} are free; preempt before they are taken"
                )
            self.cache.take(need)
        self._taken += need
        self._took = True

    def preempt(self, request: int) -> None:
        """Throw a running request out: its KV is freed, it waits again, and all of it is computed anew."""
        if request not in self.running:
            raise self._refusal(request, "be preempted", "it does not run; preempt one of `running`")
        if not self.preempts:
            why = "the engine allows no preemption; admit only what fits to its end (a peak-safe policy: svf, mc-sf)"
            raise self._refusal(request, "be preempted", why)
        if self.chunks and any(request == scheduled for scheduled, _ in self.chunks):
            raise self._refusal(
                request, "be preempted", "it has a chunk in this step; preempt before scheduling"
            )
        tokens = self.context(request)
        self.publish_decoded()
        if self.is_decoding(request):
            if self._took:
                self._give_up_token(request, tokens)
            self._leave(request)
        elif request in self.held:
            del self.held[request]
            self.idle_tokens -= tokens
        else:
            self.prefilling.remove(request)
            self.idle_tokens -= tokens
        if self.cache is not None:
            self.cache.release(request, tokens)
        del self.running[request]
        self.computed[request] = 0
        self.left[request] = self.prompt_tokens[request] + self._generated[request]
        self.preemptions += 1
        self.recorder.preempted(request)
        self.waiting.push_back(request)

    def _give_up_token(self, request: int, tokens: int) -> None:
        """Take back what was put aside for the token of this step, which the request does not decode."""
        if self.cache is not None:
            self.cache.withdraw(request, tokens)
        if tokens % self.block_tokens == 0:
            self._taken -= 1
            if self.cache is not None:
                self.cache.untake()

    def hold_back(self, request: int) -> None:
        """Let a decoding request wait with its KV kept."""
        if not self.is_decoding(request):
            raise self._refusal(request, "be held back", "it does not decode")
        tokens = self.context(request)
        self._leave(request)
        self.computed[request] = tokens
        self.idle_tokens += tokens
        self.held[request] = None

    def resume(self, request: int) -> None:
        """Let a held request decode again."""
        del self.held[request]
        self.idle_tokens -= self.computed[request]
        self._join(request, self._generated[request])

    # ---- the simulator's own part

    def begin(self, now: int, tight: bool) -> None:
        """Start composing a step; `chunks` is empty."""
        self.now = now
        self.tight = tight
        self.stalled = self.deaf = self._took = False
        self.hold = self._taken = 0
        self.wake = NEVER

    def publish_decoded(self, *, whole_steps: bool = False) -> None:
        """Where others may share what requests decode, make it known to the prefix cache.

        Blocks that the step being composed will fill count once they are taken; not so between steps.
        """
        if self.cache is not None and self.cache.shares_outputs:
            ahead = 0 if whole_steps else int(self._took)
            self.cache.publish_decoded(
                [(r, self.context(r) + ahead) for r in self.running if self.is_decoding(r)]
            )

    def leave_later(self, request: int) -> None:
        """A request is finished, and the engine does not know it yet: it keeps its seat and its blocks."""
        del self.running[request]
        self.leaving[request] = None
        self.idle_tokens += self.computed[request]

    def leave(self, request: int) -> None:
        """Free the seat and the blocks of a request that is known to be finished."""
        del self.leaving[request]
        self.idle_tokens -= self.computed[request]
        if self.cache is not None:
            self.cache.release(request, self.computed[request])

    def use_decode_blocks(self, steps: int) -> None:
        """Take the blocks of decode steps from the prefix cache's pool, less what the policy put aside."""
        assert self.cache is not None
        self.cache.take(self.decode_need(steps) - self._taken)

    def overdrawn(self, decoding: int) -> bool:
        """Say whether the composed step takes more blocks than there are."""
        if self.cache is not None:
            return self.cache.free + self._taken < (self.decode_need() if decoding else 0)
        chunks = sum(self.chunk_need(request, tokens) for request, tokens in self.chunks)
        return self.used_blocks() + chunks + (self.decode_need() if decoding else 0) > self.blocks

    def steps_that_fit(self, most: int) -> int:
        """Give how many decode steps, up to `most`, the free blocks allow."""
        free = self.free_blocks() + self._taken
        if self.decode_need(most) <= free:
            return most
        low, high = 0, most
        while high - low > 1:
            middle = (low + high) // 2
            if self.decode_need(middle) <= free:
                low = middle
            else:
                high = middle
        return low

"""The heuristic behind the rolling-horizon solver: aged order, safe admission, chunks by the engine's step times."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from optimizer.policies.base import Policy, register
from optimizer.policies.horizon_order import HorizonQueue, Places
from optimizer.policies.horizon_rules import EARNED, HARDLY, MOST_CREDIT, in_time, kv_is_safe
from optimizer.policies.horizon_steps import LATE, LEVELS, USUAL, StepRule, WorkPrices, step_s
from optimizer.problem.metrics import TPOT_SLO_S, TTFT_SLO_S
from optimizer.simulator.state import EngineState
from optimizer.units import seconds, ticks

Chunks = list[tuple[int, int]]


@register("horizon")
@dataclass
class Horizon(Policy):
    """Aged order, KV-safe admission under uncertain lengths, and prompts in chunks that the card's step times choose.

    The rule behind the rolling horizon. It needs what a serving loop sees: arrivals, prompts, predictions, tokens
    generated so far, and the public model of step times.

    *Order.* By arrival, put back by the geometric mean of the expected work and `patience_s` (`place_s`), or more where
    all wait long. The share `exempt` of the requests, those with the longest prompts, stands behind all others: their
    wait is not protected, which is what the 99th percentile allows; it can be ten times the others'. With `exempt` 0
    everybody's is. A prompt in progress gives way to one before it.

    *Admission.* In order, while the KV that all may come to need stays in the cache at `confidence` (`kv_is_safe`),
    and up to the batch that decodes fastest (`best_batch`). Who is admitted and finds no blocks after all is the last
    in the order: it is thrown out and computed again.

    *Prompts.* Mixed steps take 1.3 times an efficient prompt step; up to 2.6 times when the oldest protected
    request has waited as long as the longest 1 % of the recent past did. Prompts that would stall decodes for half as
    long again as in company wait for it until they have waited as much as that costs (`StallCosts`).

    *Goodput* (`objective`). Whoever can still have the first token in time goes first, as many as can be (`in_time`).
    For them the decodes are stalled, on credit: every decoded token earns 0.65 of its TPOT level, all steps spend.

    `log_sigma`: spread of log(true length / prediction) expected at first; it is learned, as is what lengths there are.
    Sources: place and limits were found by experiment; the rest as cited in `optimizer.policies.horizon_rules`.
    """

    objective: str = "latency"
    patience_s: float = 48.0
    exempt: float = 0.009
    confidence: float = 0.95
    log_sigma: float = 0.5

    def __post_init__(self) -> None:
        self.demand("objective", self.objective in ("latency", "goodput"), "'latency' or 'goodput'")
        self.demand("patience_s", self.patience_s >= 0, "seconds, at least 0")
        self.demand("exempt", 0 <= self.exempt < 0.5, "a share from 0 to below 0.5")
        self.demand("confidence", 0.5 <= self.confidence < 1, "a probability from 0.5 to below 1")
        self.demand("log_sigma", self.log_sigma > 0, "above 0")

    # ---- set-up

    def queue(self, state: EngineState) -> HorizonQueue:
        """Read the engine's step times, and give the queue."""
        s = state
        self._rule = StepRule(s.step_time, s.token_budget, s.max_num_seqs)
        self._capacity = float(s.blocks * s.block_tokens)
        self._deviations = NormalDist().inv_cdf(self.confidence)
        prices = WorkPrices.of(self._rule.clock, s.token_budget, s.max_num_seqs, self._capacity)
        self._places = Places(s, prices, self.patience_s, self.exempt, self.log_sigma)
        self._promised: dict[int, float] = {}
        """By running request: tokens of KV that it will hardly exceed."""
        self._promised_sum = self._idle_s = 0.0
        self._seats = 0
        self._unsafe = False
        self._levels(s)
        self._queue = HorizonQueue(self._places, self._due if self.objective == "goodput" else None)
        return self._queue

    def _levels(self, s: EngineState) -> None:
        """Look the service levels up; nobody has earned a stall yet."""
        given = s.requests.ttft_slo_s
        levels = [math.nan] * len(s.left) if given is None else given.tolist()
        wanted = [TTFT_SLO_S if level != level else level for level in levels]
        self._due = [arrival + ticks(level) for arrival, level in zip(s.arrival, wanted, strict=True)]
        paces = [] if s.requests.tpot_slo_s is None else s.requests.tpot_slo_s.tolist()
        self._tpot_s = min((level for level in paces if level == level), default=TPOT_SLO_S)
        self._credit_s = self._credited_s = 0.0
        self._credited_clock = 0

    def finished(self, state: EngineState, request: int) -> None:
        """Learn how long it was, and forget what it was promised."""
        self._places.finished(request)
        self._promised_sum -= self._promised.pop(request)

    # ---- the step

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        s = state
        undisturbed = self._make_room(s) if s.tight else True
        self._unsafe = False
        chunks: Chunks = []
        if s.prefilling or s.waiting:
            chunks = self._plan(s, undisturbed)
        if s.tight and not s.stalled:
            s.take_decode_blocks()
        if chunks:
            if not self._compute(s, chunks) and not s.num_decoding:
                self._unblock(s, chunks[0])
            s.hold = 1
        elif s.prefilling or self._unsafe or (s.waiting and self.objective == "goodput"):
            s.hold = 1

    def _make_room(self, s: EngineState) -> bool:
        """Throw requests out until the others can decode; say whether nobody had to go."""
        before = s.preemptions
        while s.decode_need() > s.free_blocks():
            self._throw_out(s, s.running)
        return s.preemptions == before

    def _throw_out(self, s: EngineState, whom: Iterable[int]) -> None:
        """Preempt the one with the last place."""
        request = max(whom, key=lambda r: (self._places.of[r], r))
        self._promised_sum -= self._promised.pop(request)
        s.preempt(request)

    def _plan(self, s: EngineState, admits: bool) -> Chunks:
        """Choose whose prompts to compute in this step, and how much of each; admit them."""
        n = s.num_decoding
        place, left_of, queue = self._places.of, s.left, self._queue
        begun = s.prefilling.copy()
        if len(begun) > 1:
            begun.sort(key=place.__getitem__)
        prefix = s.computed[begun[0]] if begun else 0
        self._seats = 0
        if admits and queue.waiting:
            most = min(s.max_num_seqs - len(s.leaving), self._rule.batch(self._places.mean_context))
            self._seats = most - len(s.running)
        chunks: Chunks = []
        if self.objective == "goodput":
            left = self._urgent(s, begun, prefix, chunks)
            if s.stalled:
                return chunks
        else:
            left = self._rule.tokens(self._places.level(), n, s.context_sum, prefix)
            left = min(left, s.token_budget - n)
        hurries = bool(chunks)
        i, last = 0, len(begun)
        while left > 0:
            request = begun[i] if i < last else -1
            if self._seats > 0 and queue.waiting:
                head = queue.head()
                if (request < 0 or place[head] < place[request]) and self._admit(s, head):
                    request = head
                    i -= 1
            if request < 0:
                break
            i += 1
            tokens = left_of[request]
            if tokens > left:
                tokens = left
            chunks.append((request, tokens))
            left -= tokens
        if left > 0 and n and chunks and not hurries and self._waits_for_company(s, chunks):
            return []
        return chunks

    def _admit(self, s: EngineState, request: int) -> bool:
        """Admit a waiting request if there is a seat, its blocks, and KV for what all may become."""
        if self._seats <= 0:
            return False
        cached = s.cached_tokens(request) if s.cache is not None else 0
        promised = self._hardly_exceeds(s, request)
        if (s.tight and self._lacks_blocks(s, request, cached)) or (
            self._promised_sum + promised > self._capacity and s.running and not self._is_safe(s, request)
        ):
            self._seats, self._unsafe = 0, True
            return False
        self._queue.take(request)
        s.admit(request, cached)
        self._promised[request] = promised
        self._promised_sum += promised
        self._seats -= 1
        return True

    def _hardly_exceeds(self, s: EngineState, request: int) -> float:
        mu, sigma = self._places.beliefs[request]
        output = min(math.exp(mu + HARDLY * sigma), s.cap[request] if s.high is None else s.high[request])
        return s.prompt_tokens[request] + output + s.block_tokens

    def _lacks_blocks(self, s: EngineState, request: int, cached: int) -> bool:
        return s.admission_need(request, s.left[request] - cached, cached) + s.decode_need() > s.free_blocks()

    def _is_safe(self, s: EngineState, request: int) -> bool:
        requests = [*s.running, request]
        generated = np.array([s.generated(r) for r in requests], float)
        held = np.array([s.prompt_tokens[r] + s.block_tokens for r in requests], float) + generated
        mu, sigma = np.array([self._places.beliefs[r] for r in requests]).T
        return kv_is_safe(held, mu, sigma, generated, self._capacity, self._deviations)

    def _urgent(self, s: EngineState, begun: list[int], prefix: int, chunks: Chunks) -> int:
        """Begin with those whose first token can still be in time, alone if that is earned; give the tokens left.

        Whoever is chosen leaves `begun`.
        """
        n, rule = s.num_decoding, self._rule
        stalls = n > 0 and self._earned_s(s) >= rule.limit_s
        if stalls:
            most, time_s = min(rule.tokens(0, 0, 0, prefix), s.token_budget), rule.limit_s
        else:
            most, time_s = rule.tokens(LEVELS, n, s.context_sum, prefix), rule.limit_s * LATE / USUAL
            most = min(most, s.token_budget - n)
        left = most
        waiting = [*(r for r in begun if not self._places.begun[r]), *self._queue.due(s.now)]
        for request in self._in_time(s, waiting, time_s / most) if most > 0 else ():
            if left <= 0:
                break
            if request in s.running or self._admit(s, request):
                chunks.append((request, min(s.left[request], left)))
                left -= chunks[-1][1]
        chosen = {request for request, _ in chunks}
        begun[:] = [r for r in begun if r not in chosen]
        s.stalled = stalls and bool(chunks)
        return min(rule.tokens(0, n, s.context_sum, prefix), s.token_budget - n) - (most - left)

    def _earned_s(self, s: EngineState) -> float:
        """Give the time for which decodes may be stalled now."""
        now, tokens = seconds(s.now), s.clock - self._credited_clock
        self._credit_s += EARNED * self._tpot_s * tokens - (now - self._credited_s)
        self._credit_s = min(self._credit_s, MOST_CREDIT * self._tpot_s)
        self._credited_s, self._credited_clock = now, s.clock
        return self._credit_s

    def _in_time(self, s: EngineState, waiting: list[int], token_s: float) -> list[int]:
        """Choose those whose first token can be in time at a pace, half a step to spare, in the order that does it."""
        now = seconds(s.now) + self._rule.limit_s / 2
        items = [(seconds(self._due[r]) - now, s.left[r] * token_s, r) for r in waiting]
        return [request for _, _, request in in_time(item for item in items if item[0] > 0)]

    def _waits_for_company(self, s: EngineState, chunks: Chunks) -> bool:
        """Whether prompts that do not fill a step cost the decodes much more than it costs them to wait for others.

        They wait until the time they have waited is what company would save, as long as one rents skis that are
        dear to buy.
        """
        n, context = s.num_decoding, s.context_sum
        excess = self._rule.excess_s(sum(tokens for _, tokens in chunks), n, context)
        if excess > 0:
            self._idle_s += len(chunks) * step_s(self._rule.clock, 0, 0, n, context)
            if self._idle_s < excess:
                return True
        self._idle_s = 0.0
        return False

    def _compute(self, s: EngineState, chunks: Chunks) -> bool:
        """Schedule chunks as far as there are blocks; say whether there was any."""
        for request, size in chunks:
            tokens = size
            if s.tight:
                if s.chunk_need(request, tokens) > s.free_blocks():
                    inside = -s.computed[request] % s.block_tokens
                    tokens = min(tokens, inside + s.free_blocks() * s.block_tokens)
                if tokens <= 0:
                    break
                s.schedule(request, tokens)
            else:
                s.chunks.append((request, tokens))
            if tokens == s.left[request]:
                self._places.begins(request)
        return bool(s.chunks)

    def _unblock(self, s: EngineState, first: tuple[int, int]) -> None:
        """Nothing can run for lack of blocks: throw others out, the last ones first, until the first can.

        If there are no others, those who leave hold the blocks, and the engine learns of that in a moment.
        """
        while not self._compute(s, [first]) and len(s.running) > 1:
            self._throw_out(s, (r for r in s.running if r != first[0]))

"""Executes a plan in order form: who goes first, and from when on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from optimizer.errors import InputError
from optimizer.policies.base import Policy
from optimizer.policies.peak import PeakGuard
from optimizer.problem.plan import OrderPlan
from optimizer.simulator.decoding import UNLIMITED
from optimizer.simulator.queues import WaitingQueue
from optimizer.simulator.state import EngineState
from optimizer.units import ticks

_SLACK = ticks(1e-9)
"""Planned moments are kept to the nanosecond: a float of seconds may lie just behind the step it means."""


def check_rows(rows: Iterable[int], requests: int, field: str) -> None:
    """Refuse a plan that names requests that are not there."""
    beyond = max(rows, default=-1)
    if beyond >= requests:
        raise InputError(f"the plan names request {beyond}; the instance has {requests}", field=field)


class PlannedQueue:
    """Waiting requests that are due, by their place in the order; the others, by when they will be.

    Parameters
    ----------
    place
        By request: its place in the order.
    due
        By request: when it is due, in ticks or rounds; None: all are, as soon as they arrive.
    """

    def __init__(self, place: list[int], due: list[int] | None) -> None:
        self._place, self._due = place, due
        self._ready: list[tuple[int, int]] = []
        self._later: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._ready) + len(self._later)

    def __iter__(self) -> Iterator[int]:
        """Go through those that are due in order, then through the others."""
        yield from (request for _, request in sorted(self._ready))
        yield from (request for _, request in sorted(self._later))

    def push(self, request: int) -> None:
        """Take in an arrival."""
        if self._due is None:
            self.push_back(request)
        else:
            heappush(self._later, (self._due[request], request))

    def push_back(self, request: int) -> None:
        """Take back a preempted request: it has been due."""
        heappush(self._ready, (self._place[request], request))

    def head(self) -> int:
        """Show the first request that is due; ask `any_due` before."""
        return self._ready[0][1]

    def pop(self) -> int:
        """Take out the first request that is due."""
        return heappop(self._ready)[1]

    def due(self) -> Iterator[int]:
        """Go through those that are due, in order."""
        ready = self._ready.copy()
        while ready:
            yield heappop(ready)[1]

    def any_due(self) -> bool:
        """Say whether a request may start now, as far as the plan goes."""
        return bool(self._ready)

    def next_due(self) -> int | None:
        """Say when the next request will be due; None: nobody waits for that."""
        return self._later[0][0] if self._later else None

    def advance(self, now: int) -> None:
        """Let requests become due."""
        while self._later and self._later[0][0] <= now:
            self.push_back(heappop(self._later)[1])


class _Guard(PeakGuard):
    """Looks ahead with the plan's own pace of prompts."""

    def __init__(self, state: EngineState, plan: OrderPlan) -> None:
        super().__init__(state)
        self._plan = plan

    def _prompt_steps(self, request: int) -> int:
        if self._plan.mixing == "exclusive":
            return 1  # nobody's KV grows beside the prompt
        s, most = self._state, self._plan.prefill_tokens or UNLIMITED
        tokens, budget = s.left[request], min(self._plan.step_tokens or UNLIMITED, s.token_budget)
        for earlier in s.prefilling:
            if earlier == request:
                break
            tokens += s.left[earlier]
        return -(-tokens // max(1, min(most, budget - s.num_decoding)))


@dataclass
class PlanOrder(Policy):
    """Executes an `OrderPlan`: see there for its rules."""

    plan: OrderPlan

    name = "plan-order"
    # Rounds in which nothing runs are counted from the moment at which the last request finishes.
    asks_always = True

    def queue(self, state: EngineState) -> WaitingQueue:
        """Give the queue in the order of the plan.

        Raises
        ------
        InputError
            If the plan does not fit the requests.
        """
        plan, n = self.plan, len(state.left)
        check_rows(plan.order, n, "order")
        named = set(plan.order)
        self._place = [0] * n
        for place, request in enumerate([*plan.order, *(r for r in range(n) if r not in named)]):
            self._place[request] = place
        due: list[int] | None = None
        for field in ("start_round", "earliest_s"):
            column = getattr(plan, field)
            if column is not None and len(column) != n:
                raise InputError(
                    f"the plan has {len(column)} of them; the instance has {n} requests", field=field
                )
        if plan.start_round is not None:
            due = list(plan.start_round)
        elif plan.earliest_s is not None:
            due = [0 if moment is None else ticks(moment) - _SLACK for moment in plan.earliest_s]
        self._queue = PlannedQueue(self._place, due)
        return self._queue

    def start(self, state: EngineState) -> None:
        """Set up limits and counters."""
        plan = self.plan
        self._budget = min(plan.step_tokens or UNLIMITED, state.token_budget)
        self._most_decodes = min(plan.max_decodes or UNLIMITED, self._budget)
        # A request that may not decode needs no token of the step's; every other one does.
        most = UNLIMITED if plan.max_decodes else self._budget
        self._seats = min(plan.max_seqs or UNLIMITED, state.max_num_seqs, most)
        self._most_tokens = plan.prefill_tokens or UNLIMITED
        self._guard = _Guard(state, plan) if plan.memory == "peak-safe" else None
        self._in_rounds = plan.start_round is not None
        self._round_ticks = None if plan.round_s is None else ticks(plan.round_s)
        self._uncounted = 0
        """Rounds that the decode clock does not count: without decodes, or without anything."""
        self._idle_since: int | None = None

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        s = state
        now = self._advance(s)
        if self.plan.max_decodes:
            self._choose_decodes(s)
        if self.plan.mixing == "exclusive":
            self._compute_prompts(s, self._budget, s.decode_need() if s.tight else 0)
            s.stalled = bool(s.chunks)
            if not s.stalled:
                self._make_room_for_decodes(s)
        else:
            undisturbed = self._make_room_for_decodes(s)
            self._compute_prompts(s, self._budget - s.num_decoding, 0, admits=undisturbed)
        self._look_again_when_due(s, now)

    def _advance(self, s: EngineState) -> int:
        """Let requests become due; give the round, or the moment in ticks."""
        queue = self._queue
        if not self._in_rounds:
            queue.advance(s.now)
            return s.now
        round_ = s.clock + self._uncounted
        if s.running:
            queue.advance(round_)
            return round_
        if self._idle_since is None:
            self._idle_since = s.now
        if self._round_ticks is not None:
            round_ += (s.now - self._idle_since) // self._round_ticks
        queue.advance(round_)
        due = queue.next_due()
        if due is not None and self._round_ticks is None and not queue.any_due():
            queue.advance(due)
            round_ = due
        if queue.any_due():
            self._uncounted, self._idle_since = round_ - s.clock, None
        return round_

    def _look_again_when_due(self, s: EngineState, now: int) -> None:
        """Keep the composed step from being repeated beyond the moment at which the next request is due."""
        if self._in_rounds and s.chunks and (s.stalled or not s.num_decoding):
            self._uncounted += 1
            s.hold = 1
        due = self._queue.next_due()
        if due is None:
            return
        if not self._in_rounds:
            s.wake = due
            if s.chunks:
                s.hold = 1
        elif self._idle_since is None:
            s.hold = min(s.hold or UNLIMITED, due - now)
        elif self._round_ticks is not None:
            s.wake = self._idle_since + (due - s.clock - self._uncounted) * self._round_ticks

    def _choose_decodes(self, s: EngineState) -> None:
        """Let those foremost in the order decode, no more than the plan allows."""
        able = [r for r in s.running if s.is_decoding(r) or r in s.held]
        able.sort(key=self._place.__getitem__)
        chosen = set(able[: self._most_decodes])
        for request in able:
            if request in s.held:
                if request in chosen:
                    s.resume(request)
            elif request not in chosen:
                s.hold_back(request)

    def _make_room_for_decodes(self, s: EngineState) -> bool:
        """Throw requests out until all others can decode; say whether none had to be."""
        if not s.tight:
            return True
        before = s.preemptions
        while s.decode_need() > s.free_blocks():
            self._throw_out(s)
        s.take_decode_blocks()
        return s.preemptions == before

    def _throw_out(self, s: EngineState) -> None:
        s.preempt(max(s.running, key=self._place.__getitem__))

    def _compute_prompts(self, s: EngineState, budget: int, spare: int, *, admits: bool = True) -> None:
        """Go on with prompts that have begun, then admit; `spare` blocks stay free beside an admission."""
        budget, before = min(budget, self._most_tokens), s.preemptions
        for request in list(s.prefilling):
            tokens = min(s.left[request], budget)
            while (
                s.tight
                and tokens
                and request in s.running
                and s.chunk_need(request, tokens) > s.free_blocks()
            ):
                self._throw_out(s)
            if tokens and request in s.running:
                s.schedule(request, tokens)
                budget -= tokens
        refused_for = 0
        if admits and s.preemptions == before and self._enough_to_begin(s, spare):
            budget, refused_for = self._admit(s, budget, spare)
        s.deaf = not budget or len(s.running) + len(s.leaving) >= self._seats
        if s.chunks:
            request, tokens = s.chunks[0]
            s.hold = s.left[request] // tokens if len(s.chunks) == 1 and not budget else 1
        else:
            s.hold = refused_for

    def _enough_to_begin(self, s: EngineState, spare: int) -> bool:
        """Whether so many prompts can be admitted now that the plan wants them begun."""
        batch = self.plan.prefill_batch
        busy = self._most_decodes if self.plan.max_decodes else 1
        if batch is None or s.prefilling or s.num_decoding < busy:
            return True
        tokens = blocks = 0
        free, seats = s.free_blocks() - spare, self._seats - len(s.running) - len(s.leaving)
        for request in self._queue.due():
            blocks += s.admission_need(request, s.left[request], 0)
            seats -= 1
            if seats < 0 or blocks > free:
                return False
            tokens += s.left[request]
            if tokens >= batch:
                return True
        return True

    def _admit(self, s: EngineState, budget: int, spare: int) -> tuple[int, int]:
        """Admit in order; give the budget left, and for how many steps the first one refused surely stays so."""
        queue = self._queue
        while budget and queue.any_due() and len(s.running) + len(s.leaving) < self._seats:
            request = queue.head()
            cached = s.cached_tokens(request) if s.cache is not None else 0
            whole = s.left[request] - cached
            if s.tight and s.admission_need(request, whole, cached) + spare > s.free_blocks():
                break
            if self._guard is not None and (steps := self._guard.refuses_for(request)):
                return budget, steps
            queue.pop()
            s.admit(request, cached)
            tokens = min(whole, budget)
            s.schedule(request, tokens)
            budget -= tokens
        return budget, 0

"""The heuristics of scheduling theory on vLLM V1's mechanism: another order, a look at the future peak of KV."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import ClassVar

from optimizer.policies.base import register
from optimizer.policies.mechanism import ChunkedPrefill
from optimizer.policies.peak import PeakGuard
from optimizer.problem.metrics import TPOT_SLO_S, TTFT_SLO_S
from optimizer.simulator.queues import KeyQueue, WaitingQueue
from optimizer.simulator.state import EngineState
from optimizer.units import seconds


@register("fcfs")
@dataclass
class FirstComeFirstServed(ChunkedPrefill):
    """First come first served: vLLM V1's mechanism as it is, the baseline of the other orders."""


@dataclass
class ByKey(ChunkedPrefill):
    """vLLM V1's mechanism with waiting requests in order of a key; the largest key is thrown out first.

    `look_ahead` (class attribute): admit only if the future peak of KV stays within the cache.
    """

    arrivals_queue_behind: ClassVar[bool] = False
    look_ahead: ClassVar[bool] = False

    def start(self, state: EngineState) -> None:
        """Set up the look-ahead."""
        self._guard = PeakGuard(state) if self.look_ahead else None

    def key(self, s: EngineState, request: int) -> float:
        """Give the key; smaller goes first."""
        raise NotImplementedError

    def queue(self, state: EngineState) -> WaitingQueue:
        """Give a queue in order of the key."""
        return KeyQueue(lambda request: self.key(state, request))

    def may_admit(self, s: EngineState, request: int) -> bool:
        """Ask the look-ahead, if there is one; if it refuses, it also says for how long that is sure."""
        if self._guard is None:
            return True
        s.hold = self._guard.refuses_for(request)
        return not s.hold

    def throw_out(self, s: EngineState) -> None:
        """Preempt the running request with the largest key."""
        s.preempt(max(s.running, key=lambda request: (self.key(s, request), s.admission[request])))


@register("sjf")
@dataclass
class ShortestJobFirst(ByKey):
    """Shortest job first: fewest output tokens, as far as they are known, goes first."""

    def key(self, s: EngineState, request: int) -> float:
        """Give the expected output tokens."""
        return s.length_guess(request)


@register("lpt")
@dataclass
class LongestProcessingTime(ByKey):
    """Longest processing time first: most output tokens go first, which packs the makespan."""

    def key(self, s: EngineState, request: int) -> float:
        """Give the expected output tokens, negative."""
        return -s.length_guess(request)


@register("edf")
@dataclass
class EarliestDeadlineFirst(ByKey):
    """Earliest deadline first; without a deadline: arrival + TTFT level + expected length x TPOT level."""

    def start(self, state: EngineState) -> None:
        """Look the levels up."""
        super().start(state)
        r = state.requests
        nothing = [float("nan")] * len(state.arrival)
        self._given = nothing if r.deadline_s is None else r.deadline_s.tolist()
        self._ttft = nothing if r.ttft_slo_s is None else r.ttft_slo_s.tolist()
        self._tpot = nothing if r.tpot_slo_s is None else r.tpot_slo_s.tolist()

    def key(self, s: EngineState, request: int) -> float:
        """Give the deadline in seconds."""
        given = self._given[request]
        if given == given:
            return given
        ttft, tpot = self._ttft[request], self._tpot[request]
        return (
            seconds(s.arrival[request])
            + (ttft if ttft == ttft else TTFT_SLO_S)
            + s.length_guess(request) * (tpot if tpot == tpot else TPOT_SLO_S)
        )


@register("srpt")
@dataclass
class ShortestRemaining(ByKey):
    """Shortest remaining processing time: a shorter request takes the place of the one with most to come.

    Only where the shorter one lacks a seat or blocks; the other one's KV is dropped and computed again later.
    """

    def key(self, s: EngineState, request: int) -> float:
        """Give the expected output tokens still to come."""
        return max(s.length_guess(request) - s.generated(request), 1)

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        s = state
        while s.waiting and s.running and self._head_lacks_room(s):
            longest = max(s.running, key=lambda r: (self.key(s, r), s.admission[r]))
            if self.key(s, longest) <= self.key(s, s.waiting.head()):
                break
            s.preempt(longest)
        super().step(s)
        s.deaf = False  # a shorter arrival can take somebody's place whenever it comes
        if s.waiting and (s.tight or s.chunks):
            s.hold = 1  # and so can who waits for budget, once the seat or the blocks it needs are taken

    def _head_lacks_room(self, s: EngineState) -> bool:
        if s.free_seats() <= 0:
            return True
        if not s.tight:
            return False
        head = s.waiting.head()
        free = s.free_blocks() - s.decode_need()
        return s.admission_need(head, s.left[head], 0) > free


@register("mc-sf")
@dataclass
class MemoryConstrainedShortestFirst(ByKey):
    """MC-SF: shortest output first, admitted while the future peak of KV fits; the first misfit ends the scan.

    Source: Jaillet et al., arXiv 2502.07115.
    """

    look_ahead = True

    def key(self, s: EngineState, request: int) -> float:
        """Give the expected output tokens."""
        return s.length_guess(request)


@register("svf")
@dataclass
class SmallestVolumeFirst(ByKey):
    """Smallest volume first: the area of a request's KV ramp, prompt x output + output x (output + 1) / 2.

    Admitted while the future peak of KV fits. Source: Kong et al., arXiv 2606.22327.
    """

    look_ahead = True

    def key(self, s: EngineState, request: int) -> float:
        """Give the expected volume in token steps."""
        output = s.length_guess(request)
        return s.prompt_tokens[request] * output + output * (output + 1) / 2


_Place = tuple[float, int, float, float]
"""Of a request in an order: what it is ordered by, the request, its output tokens, and all its tokens."""


class BatchQueue:
    """Waiting requests in batches: the best batch first, shortest outputs first inside it.

    The best batch has the smallest sum of outputs over squared size among those that fit into the cache
    together; it is searched for among the prefixes of three orders (by output, by size, by volume), since
    the exact search is NP-hard.

    Each order is a heap, of which a search takes off as many as fit and puts back whom it does not choose. Whom
    another order chose stays in it until it comes up; who comes back then stands in it twice.
    """

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._batch: list[int] = []
        self._rest: set[int] = set()
        self._new: list[int] = []
        self._orders: tuple[list[_Place], ...] = ([], [], [])

    def __len__(self) -> int:
        return len(self._batch) + len(self._rest)

    def __iter__(self) -> Iterator[int]:
        """Go through the requests: the batch, then the others by arrival."""
        yield from reversed(self._batch)
        yield from sorted(self._rest)

    def push(self, request: int) -> None:
        """Take in an arrival or a preempted request."""
        self._rest.add(request)
        self._new.append(request)

    push_back = push

    def head(self) -> int:
        """Show the next request; forms the next batch when the last one is used up."""
        if not self._batch:
            self._batch = self._best_batch()
            self._rest.difference_update(self._batch)
        return self._batch[-1]

    def pop(self) -> int:
        """Take out the next request."""
        self.head()
        return self._batch.pop()

    def _best_batch(self) -> list[int]:
        if len(self._rest) == 1:
            self._new.clear()
            for order in self._orders:
                order.clear()
            return list(self._rest)
        self._take_in()
        best: list[_Place] = []
        least = float("inf")
        prefixes = [self._fitting(order) for order in self._orders]
        for prefix in prefixes:
            total = 0.0
            for count, (_, _, output, _) in enumerate(prefix, start=1):
                total += output
                if total / count**2 < least:
                    least, best = total / count**2, prefix[:count]
        batch = [request for _, request, _, _ in sorted(best, key=lambda place: (-place[2], -place[1]))]
        chosen = set(batch)
        for order, prefix in zip(self._orders, prefixes, strict=True):
            for place in prefix:
                if place[1] not in chosen:
                    heappush(order, place)
        return batch

    def _take_in(self) -> None:
        """Give those who came a place in every order."""
        prompts, guess = self._state.prompt_tokens, self._state.length_guess
        for request in self._new:
            output, prompt = guess(request), prompts[request]
            size = prompt + output
            for order, measure in zip(self._orders, (output, size, (prompt + size) * output), strict=True):
                heappush(order, (measure, request, output, size))
        self._new.clear()

    def _fitting(self, order: list[_Place]) -> list[_Place]:
        """Take off the requests at the head of an order that fit into the cache together, one at least."""
        capacity = self._state.blocks * self._state.block_tokens
        prefix: list[_Place] = []
        held = 0.0
        while order:
            place = order[0]
            if place[1] in self._rest and not (prefix and prefix[-1] == place):
                held += place[3]
                if held > capacity and prefix:
                    break
                prefix.append(place)
            heappop(order)
        return prefix


@register("sorted-f")
@dataclass
class SortedF(ByKey):
    """Sorted-F: batches of least total output over squared size, shortest outputs first inside a batch.

    Admitted while the future peak of KV fits. Source: Wang, Ye and Zhou, arXiv 2508.06133; the batch is
    searched for greedily.
    """

    look_ahead = True

    def queue(self, state: EngineState) -> WaitingQueue:
        """Give the queue of batches."""
        return BatchQueue(state)

    def key(self, s: EngineState, request: int) -> float:
        """Give the expected output tokens: the longest is thrown out first."""
        return s.length_guess(request)

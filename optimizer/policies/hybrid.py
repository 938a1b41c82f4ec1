"""The online method of arXiv 2502.15763: a list per client, work pulling, a price on stalled against idle clients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush

from optimizer.capacity.step_time import StepClock
from optimizer.policies.base import Policy, register
from optimizer.policies.horizon_steps import step_s
from optimizer.policies.peak import PeakGuard
from optimizer.simulator.state import EngineState
from optimizer.units import seconds


class ClientLists:
    """Waiting requests on lists, one of each client, the longest first; a client without any takes from the others.

    Whoever comes is put on the list of the client with the fewest tokens to decode, the longest of those who come
    together first (longest processing time, Graham 1969).

    Parameters
    ----------
    state
        Whose requests.

    Attributes
    ----------
    free
        Clients that nobody is served on.
    """

    def __init__(self, state: EngineState) -> None:
        self._state = state
        clients = state.max_num_seqs
        self.free = set(range(clients))
        self._load = [0.0] * clients
        self._lists: list[list[tuple[float, int]]] = [[] for _ in range(clients)]
        self._longest: list[tuple[float, int]] = []
        """All who wait, and some who do not any more."""
        self._client: dict[int, int] = {}
        """By request, of those who wait and those who run."""
        self._tokens: dict[int, float] = {}
        self._new: list[int] = []
        self._waiting: set[int] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[int]:
        """Go through the requests, the longest first."""
        self._settle()
        return iter(sorted(self._waiting, key=lambda r: (-self._tokens[r], r)))

    def push(self, request: int) -> None:
        """Take in an arrival."""
        self._new.append(request)
        self._waiting.add(request)

    def push_back(self, request: int) -> None:
        """Take back a preempted request; its client is free."""
        self.left(request)
        self.push(request)

    def left(self, request: int) -> None:
        """Learn that a request does not run any more."""
        client = self._client.pop(request)
        self._load[client] -= self._tokens.pop(request)
        self.free.add(client)

    def _settle(self) -> None:
        """Put those who came on lists."""
        s = self._state
        for request in self._new:
            self._tokens[request] = max(s.length_guess(request) - s.generated(request), 1.0)
        for request in sorted(self._new, key=lambda r: (-self._tokens[r], r)):
            tokens = self._tokens[request]
            client = min(range(len(self._load)), key=self._load.__getitem__)
            self._client[request] = client
            self._load[client] += tokens
            heappush(self._lists[client], (-tokens, request))
            heappush(self._longest, (-tokens, request))
        self._new.clear()

    def stage(self, most: int) -> list[tuple[int, int]]:
        """Choose who is prefilled next: (request, client), of the clients that are free.

        Clients with a list of their own come first, then those who pull the longest requests of all lists.

        Parameters
        ----------
        most
            Pairs to give.
        """
        self._settle()
        pairs = [(self._first(self._lists[c], c), c) for c in sorted(self.free)]
        chosen = [(request, client) for request, client in pairs if request >= 0][:most]
        without = [client for request, client in pairs if request < 0][: most - len(chosen)]
        taken = {request for request, _ in chosen}
        kept = []
        while without and self._first(self._longest) >= 0:
            kept.append(heappop(self._longest))
            request = kept[-1][1]
            if request not in taken:
                taken.add(request)
                chosen.append((request, without.pop(0)))
        for place in kept:
            heappush(self._longest, place)
        return chosen

    def _first(self, places: list[tuple[float, int]], client: int | None = None) -> int:
        """Give the first of a list who waits, on this client's list if it is one's; -1: nobody.

        Who was pulled or has come back stands in it still, or twice.
        """
        while places:
            tokens, request = places[0]
            waits = request in self._waiting and self._tokens.get(request) == -tokens
            if waits and (client is None or self._client[request] == client):
                return request
            heappop(places)
        return -1

    def take(self, request: int, client: int) -> None:
        """Let a client serve a request, of whosever list."""
        self._waiting.remove(request)
        tokens = self._tokens[request]
        self._load[self._client[request]] -= tokens
        self._load[client] += tokens
        self._client[request] = client
        self.free.remove(client)

    def head(self) -> int:
        """Show the next request."""
        return self.stage(1)[0][0] if self.free else next(iter(self))

    def pop(self) -> int:
        """Take out the next request."""
        request, client = self.stage(1)[0]
        self.take(request, client)
        return request


@register("hybrid")
@dataclass
class Hybrid(Policy):
    """Clients with lists of their own, longest first; stages of prompts alone, when idle clients have paid for them.

    A client is a place in the batch. Requests are put on the clients' lists by their expected outputs, and a client
    whose list is empty takes the longest request of any other. Prompts are computed in stages of their own, in
    which all who decode are stalled: a stage for those whom the free clients would take begins once these clients
    have been idle for `price` times as many client-seconds as it stalls, or when nobody decodes. It takes whole
    prompts up to the token budget; one that is longer takes several steps.

    The paper counts clients and no memory: here a request is admitted while the future peak of KV fits
    (`optimizer.policies.peak`), and where blocks run out the last admitted is thrown out.

    Made for the makespan of a batch: short requests wait for long ones.
    Source: Pang et al., arXiv 2502.15763, rebuilt from its summaries.
    """

    price: float = 1.0
    stall: str = "avoidable"

    def __post_init__(self) -> None:
        self.demand("price", self.price >= 0, "0 or more")
        self.demand("stall", self.stall in ("avoidable", "whole"), "'avoidable' or 'whole'")

    def queue(self, state: EngineState) -> ClientLists:
        """Give the lists."""
        self._clock = StepClock(state.step_time)
        self._full_s = step_s(self._clock, state.token_budget, 0) / state.token_budget
        self._guard = PeakGuard(state)
        self._idle = self._idling = self._asked = 0
        self._lists = ClientLists(state)
        return self._lists

    def finished(self, state: EngineState, request: int) -> None:
        """Free the client."""
        self._lists.left(request)

    def step(self, state: EngineState) -> None:
        """Compose the next step: a stage of prompts, or a round of decodes."""
        s = state
        self._idle += self._idling * (s.now - self._asked)
        self._asked, self._idling = s.now, 0
        before = s.preemptions
        if s.tight and not s.prefilling:
            while s.decode_need() > s.free_blocks():
                s.preempt(next(reversed(s.running)))
        if s.prefilling:
            self._go_on(s)
        elif s.waiting and s.preemptions == before and (stage := self._stage(s)):
            if self._has_paid(s, stage):
                self._begin(s, stage)
            else:
                self._idling, s.hold = s.free_seats(), 1
        if s.chunks:
            s.stalled, s.hold = True, 1
        elif s.tight:
            s.take_decode_blocks()

    def _go_on(self, s: EngineState) -> None:
        """Compute more of a prompt that is longer than the token budget; its blocks have been free since it began."""
        for request in s.prefilling:
            s.schedule(request, min(s.left[request], s.token_budget))

    def _stage(self, s: EngineState) -> list[tuple[int, int]]:
        """Choose (request, client) of the next stage: whole prompts within token budget and free blocks."""
        tokens = blocks = 0
        stage: list[tuple[int, int]] = []
        for request, client in self._lists.stage(s.free_seats()):
            cached = s.cached_tokens(request)
            whole = s.left[request] - cached
            tokens += whole
            blocks += s.admission_need(request, whole, cached)
            if (stage and tokens > s.token_budget) or (s.tight and blocks > s.free_blocks()):
                break
            stage.append((request, client))
        if stage:
            s.hold = self._guard.refuses_for(stage[0][0])
        return [] if s.hold else stage

    def _has_paid(self, s: EngineState, stage: list[tuple[int, int]]) -> bool:
        """Whether free clients have been idle for as long as the stage stalls the others."""
        if not s.num_decoding:
            return True
        sizes = [s.left[request] - s.cached_tokens(request) for request, _ in stage]
        tokens = sum(sizes)
        attention = sum(size * (size + 1) // 2 for size in sizes)
        stage_s = seconds(self._clock.step(tokens, attention, len(sizes), tokens, 0, 0))
        if self.stall == "avoidable":
            stage_s = max(stage_s - self._full_s * tokens, 0.0)
        return seconds(self._idle) >= self.price * s.num_decoding * stage_s

    def _begin(self, s: EngineState, stage: list[tuple[int, int]]) -> None:
        """Admit a stage, as far as the future peak of KV allows."""
        self._idle = 0
        for place, (request, client) in enumerate(stage):
            if place and self._guard.refuses_for(request):
                break
            cached = s.cached_tokens(request)
            self._lists.take(request, client)
            s.admit(request, cached)
            s.schedule(request, min(s.left[request], s.token_budget))

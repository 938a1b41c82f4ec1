"""Who comes when in the `horizon` policy: places in the order, protected waits, the queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

from optimizer.policies.horizon_memory import WINDOW, LengthBeliefs
from optimizer.policies.horizon_rules import (
    EXEMPT_S,
    LARGE,
    Belief,
    patience,
    place_s,
    pressure,
    remaining_tokens,
)
from optimizer.policies.horizon_steps import LEVELS, WorkPrices
from optimizer.policies.recent import Recent
from optimizer.simulator.state import EngineState
from optimizer.units import seconds


class Places:
    """Places in the order, given when requests arrive, and the waits for first tokens that come of them.

    Parameters
    ----------
    state
        Whose requests.
    prices
        Of work.
    patience_s, exempt, log_sigma
        Options of the policy.

    Attributes
    ----------
    of
        By request: its place, a moment in seconds; smaller goes first.
    beliefs
        By request: what is believed of its length.
    begun
        By request: the step that gives its first token has been composed.
    mean_context
        Tokens that a request holds in the middle of its decoding, on average over all who came.
    """

    def __init__(
        self, state: EngineState, prices: WorkPrices, patience_s: float, exempt: float, log_sigma: float
    ) -> None:
        n = len(state.left)
        self._state, self._prices = state, prices
        self._patience_s, self._exempt = patience_s, exempt
        self.of = [0.0] * n
        self.beliefs = [Belief(0.0, 0.0)] * n
        self.begun = [False] * n
        self.mean_context = self._contexts = 0.0
        self._lengths = LengthBeliefs(log_sigma)
        self._protected = [True] * n
        self._exempted = 0
        self._unseen: deque[int] = deque()
        """Protected requests by arrival, those in front without a first token."""
        self._works, self._prefills, self._waits = Recent(WINDOW), Recent(WINDOW), Recent(WINDOW)
        self._usual_wait_s = 0.0

    def arrived(self, request: int) -> None:
        """Form a belief about a new request, and give it its place."""
        s = self._state
        prompt, cap = s.prompt_tokens[request], s.cap[request]
        if s.estimate is None or s.low is None or s.high is None:
            belief = self._lengths.of(None, 1, cap, cap)
        else:
            belief = self._lengths.of(s.estimate[request], s.low[request], s.high[request], cap)
        self.beliefs[request] = belief
        output = remaining_tokens(belief, 0)
        self._contexts += prompt + output / 2
        self.mean_context = self._contexts / (request + 1)
        prefill = self._prices.prefill_s(prompt)
        work = prefill + self._prices.decode_s(prompt, output)
        self._works.add(work)
        self._prefills.add(prefill)
        large = self._works.quantile(LARGE) or 0.0
        place = place_s(
            seconds(s.arrival[request]), work, patience(self._patience_s, self._usual_wait_s, large)
        )
        longest = self._prefills.quantile(1 - 2 * self._exempt) or 0.0
        if self._exempted < self._exempt * request - 1 and prefill >= longest:
            self._exempted += 1
            self._protected[request] = False
            place += EXEMPT_S
        else:
            self._unseen.append(request)
        self.of[request] = place

    def begins(self, request: int) -> None:
        """Note that the step with a request's first token is composed now."""
        if self.begun[request]:
            return
        self.begun[request] = True
        if self._protected[request]:
            s = self._state
            self._waits.add(seconds(s.now - s.arrival[request]))
            self._usual_wait_s = self._waits.quantile(0.99) or 0.0

    def finished(self, request: int) -> None:
        """Learn how long a request was, and how wrong the prediction."""
        s = self._state
        self._lengths.learn(s.generated(request), None if s.estimate is None else s.estimate[request])

    def level(self) -> int:
        """Say how pressing the oldest wait is, from 0 to `LEVELS`: measured by the longest of the recent past."""
        unseen, begun = self._unseen, self.begun
        while unseen and begun[unseen[0]]:
            unseen.popleft()
        if not unseen:
            return 0
        s = self._state
        return round(LEVELS * pressure(seconds(s.now - s.arrival[unseen[0]]), self._usual_wait_s))


class HorizonQueue:
    """Waiting requests by place, with their deadlines beside; anybody can be taken out.

    Parameters
    ----------
    places
        Told of who comes.
    deadlines
        By request, in ticks; None: they are not needed.

    Attributes
    ----------
    waiting
        Who waits.
    """

    def __init__(self, places: Places, deadlines: list[int] | None) -> None:
        self._places, self._deadlines = places, deadlines
        self.waiting: set[int] = set()
        self._heap: list[tuple[float, int]] = []
        self._due: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.waiting)

    def __iter__(self) -> Iterator[int]:
        """Go through the requests in order of place."""
        return (request for _, request in sorted((self._places.of[r], r) for r in self.waiting))

    def push(self, request: int) -> None:
        """Take in an arrival."""
        self._places.arrived(request)
        if self._deadlines is not None:
            heappush(self._due, (self._deadlines[request], request))
        self.push_back(request)

    def push_back(self, request: int) -> None:
        """Take back a preempted request."""
        self.waiting.add(request)
        heappush(self._heap, (self._places.of[request], request))

    def head(self) -> int:
        """Show the next request by place."""
        heap, waiting = self._heap, self.waiting
        while heap[0][1] not in waiting:
            heappop(heap)
        return heap[0][1]

    def pop(self) -> int:
        """Take out the next request by place."""
        request = self.head()
        self.waiting.remove(request)
        return request

    def take(self, request: int) -> None:
        """Take out a request from anywhere."""
        self.waiting.remove(request)

    def due(self, now: int) -> list[int]:
        """Give those who wait and whose deadline is to come."""
        due = self._due
        while due and due[0][0] <= now:
            heappop(due)
        return [request for _, request in due if request in self.waiting]

"""The event loop: asks a policy for a step, repeats the step as long as nothing changes, in closed form."""

from __future__ import annotations

import gc
import time
from heapq import heappop
from typing import TYPE_CHECKING

from optimizer.capacity.step_time import StepClock, steps_to_reach
from optimizer.errors import PolicyError
from optimizer.simulator.state import NEVER, EngineState
from optimizer.units import seconds

if TYPE_CHECKING:
    from optimizer.policies.base import Policy


class Loop:
    """Runs a policy on an engine state until every request is finished.

    Events at the same moment have one order: the step that ends then is done first (decodes that finish with
    it, then prompts completed by it, each in order of admission), then arrivals are taken in, in the order
    of the instance, then the policy is asked.

    Parameters
    ----------
    state
        Fresh engine state.
    policy
        Started with that state.
    clock
        Step times.

    Attributes
    ----------
    first_token, finish
        By request, in ticks; -1: not yet.
    events
        Passes of the loop.
    loop_seconds
        Wall time that `run` took.
    """

    def __init__(self, state: EngineState, policy: Policy, clock: StepClock) -> None:
        self.state, self.policy, self.clock = state, policy, clock
        self.first_token = [-1] * state.size
        self.finish = [-1] * state.size
        self.events = 0
        self.loop_seconds = 0.0
        self._unfinished = state.size
        self._preemptions_at_progress = 0

    def run(self) -> None:
        """Go until all is done.

        Raises
        ------
        PolicyError
            On a deadlock, a livelock, or a step that the engine cannot run.
        """
        collects = gc.isenabled()
        gc.disable()  # nothing here is cyclic, and the collector would walk every record made
        start = time.perf_counter()
        try:
            self._run()
        finally:
            self.loop_seconds = time.perf_counter() - start
            if collects:
                gc.enable()

    def _run(self) -> None:
        s, policy, clock = self.state, self.policy, self.clock
        compose, asks_always = policy.step, policy.asks_always
        waiting, prefilling, chunks = s.waiting, s.prefilling, s.chunks
        arrival = [*s.arrival, NEVER]
        push, note, pieces_of = waiting.push, s.recorder.run, clock.decode
        # What a step adds at most must fit below this, or blocks have to be counted.
        safe_tokens = s.safe_tokens
        now, upcoming, next_arrival, events = 0, 0, arrival[0], 0
        while self._unfinished:
            events += 1
            while next_arrival <= now:
                push(upcoming)
                upcoming += 1
                next_arrival = arrival[upcoming]
            decoding = s.num_decoding
            deaf, hold, wake = False, 0, NEVER
            tight = s.context_sum + s.idle_tokens > safe_tokens
            if waiting or prefilling or tight or asks_always or s.held:
                preempted = s.preemptions
                s.begin(now, tight)
                compose(s)
                decoding = 0 if s.stalled else s.num_decoding
                deaf, hold, wake = s.deaf, s.hold, s.wake
                if s.preemptions != preempted:
                    hold = 1  # what was freed may let somebody in at the next step
                    self._watch_for_livelock()
            if chunks:
                now = self._prefill(now, decoding, hold or 1, NEVER if deaf else next_arrival)
            elif decoding:
                k = s.next_finish() - s.clock
                if 0 < hold < k:
                    k = hold
                context = s.context_sum + decoding
                pieces = pieces_of(decoding)
                constant, slope = pieces[-1]
                first, growth = constant + slope * context, slope * decoding
                if len(pieces) > 1:
                    first, growth, k = _largest_piece(pieces, context, decoding, k)
                if not tight:
                    if s.context_sum + s.idle_tokens + k * decoding > safe_tokens:
                        k = s.steps_that_fit(k)
                else:
                    k = s.steps_that_fit(k)
                    if k == 0:
                        raise PolicyError(
                            f"{policy.name} lets {decoding} requests decode at {seconds(now):.6f} s, which takes "
                            f"{s.decode_need()} KV blocks; {s.free_blocks()} are free"
                        )
                span = first * k + growth * (k * (k - 1) // 2)
                until = wake if deaf or wake < next_arrival else next_arrival
                if now + span > until:
                    k = steps_to_reach(until - now, first, growth)
                    span = first * k + growth * (k * (k - 1) // 2)
                if s.cache is not None:
                    s.use_decode_blocks(k)
                note((now, now + span, first, k, decoding, context, 0))
                now += span
                s.clock += k
                s.context_sum += k * decoding
                if s.clock == s.next_finish():
                    self._finish_decodes(now)
            else:
                now = self._idle(now, min(next_arrival, wake))
        self.events = events

    def _prefill(self, now: int, decoding: int, hold: int, until: int) -> int:
        """Execute a step with prompts in it, up to `hold` times; give the moment it ends."""
        s, chunks, computed, left = self.state, self.state.chunks, self.state.computed, self.state.left
        tokens = attention = contexts = 0
        recorder, run = s.recorder, s.recorder.count
        rows = recorder.chunks
        for request, n in chunks:
            c = computed[request]
            tokens += n
            attention += n * c + n * (n + 1) // 2
            contexts += c + n
            rows += (run, request, n, c)
        context = s.context_sum + decoding if decoding else 0
        step = self.clock.step
        first = step(tokens, attention, len(chunks), contexts, decoding, context)
        k, span = 1, first
        if hold > 1:
            k, span = self._repeat(
                now, first, (tokens, attention, len(chunks), contexts, decoding, context), hold, until
            )
        if s.tight:
            self._check_blocks(decoding)
        if s.cache is not None:
            s.use_decode_blocks(k if decoding else 0)
        recorder.run((now, now + span, first, k, decoding, context, tokens))
        now += span
        s.idle_tokens += tokens * k
        if decoding:
            s.clock += k
            s.context_sum += k * decoding
            if s.clock == s.next_finish():
                self._finish_decodes(now)
        for request, n in chunks:
            computed[request] += n * k
            left[request] -= n * k
            if not left[request]:
                self._complete_prompt(request, now)
        chunks.clear()
        return now

    def _repeat(self, now: int, first: int, sums: tuple[int, ...], hold: int, until: int) -> tuple[int, int]:
        """Give how often a step with one chunk can be repeated, and how long that takes."""
        s = self.state
        tokens, attention, seqs, contexts, decoding, context = sums
        k = hold
        if decoding:
            k = min(k, s.next_finish() - s.clock)
        if s.context_sum + s.idle_tokens + k * (tokens + decoding) > s.safe_tokens:
            return 1, first  # blocks may run out on the way: step by step

        def time_of(j: int) -> int:
            return self.clock.step(
                tokens,
                attention + j * tokens * tokens,
                seqs,
                contexts + j * tokens,
                decoding,
                context + j * decoding,
            )

        growth = time_of(1) - first
        # A maximum of affine functions is convex: if the last step lies on the line, all of them do.
        while k > 1 and time_of(k - 1) != first + (k - 1) * growth:
            k //= 2
        span = first * k + growth * (k * (k - 1) // 2)
        if now + span > until:
            k = steps_to_reach(until - now, first, growth)
            span = first * k + growth * (k * (k - 1) // 2)
        return k, span

    def _check_blocks(self, decoding: int) -> None:
        s = self.state
        if s.overdrawn(decoding):
            raise PolicyError(
                f"{self.policy.name} composed a step at {seconds(s.now):.6f} s that takes more KV blocks than are free"
            )

    def _complete_prompt(self, request: int, now: int) -> None:
        """A prompt is done: its first token (or its next, after a preemption) is out."""
        s = self.state
        s.prefilling.remove(request)
        s.idle_tokens -= s.computed[request]
        self._preemptions_at_progress = s.preemptions
        generated = s.generated(request) + 1
        if self.first_token[request] < 0:
            self.first_token[request] = now
        if s.completed(request, generated):
            self._done(request, now)

    def _finish_decodes(self, now: int) -> None:
        s, heap, size = self.state, self.state.finish_heap, self.state.size
        self._preemptions_at_progress = s.preemptions
        done = []
        while heap and heap[0] < (s.clock + 1) * size:
            clock, request = divmod(heappop(heap), size)
            if s.finishes_at(request) == clock:  # else it was preempted since, or this is a second entry
                s.finish_decode(request)
                done.append(request)
        if len(done) > 1:
            done.sort(key=s.admission.__getitem__)
        for request in done:
            self._done(request, now)

    def _done(self, request: int, now: int) -> None:
        s = self.state
        if s.cache is not None:
            s.cache.release(request, s.computed[request])
        del s.running[request]
        self.finish[request] = now
        self._unfinished -= 1
        self.policy.finished(s, request)

    def _idle(self, now: int, until: int) -> int:
        """Nothing runs: go to the next arrival, or ask again if the policy has just thrown somebody out."""
        s = self.state
        if s.now == now and s.preemptions > self._preemptions_at_progress and s.waiting and not s.running:
            self._preemptions_at_progress = s.preemptions
            return now
        if until >= NEVER:
            first = next(iter(s.waiting), None)
            named = "nobody waits" if first is None else f"request {s.requests.name(first)} waits first"
            raise PolicyError(
                f"{self.policy.name} is deadlocked at {seconds(now):.6f} s: it lets nothing run, nothing is to arrive, "
                f"and {self._unfinished} requests are not finished; {named}, {len(s.running)} hold KV"
            )
        return until

    def _watch_for_livelock(self) -> None:
        s = self.state
        if s.preemptions - self._preemptions_at_progress > 1000 + 4 * s.max_num_seqs:
            raise PolicyError(
                f"{self.policy.name} is livelocked at {seconds(s.now):.6f} s: "
                f"{s.preemptions - self._preemptions_at_progress} preemptions and not one prompt completed or request "
                f"finished in between; request {s.requests.name(next(iter(s.waiting)))} waits first"
            )


def _largest_piece(
    pieces: tuple[tuple[int, int], ...], context: int, decoding: int, most: int
) -> tuple[int, int, int]:
    """Give the step time now, its growth per step, and for how many steps (up to `most`) that holds."""
    best = max(range(len(pieces)), key=lambda i: (pieces[i][0] + pieces[i][1] * context, pieces[i][1]))
    constant, slope = pieces[best]
    if best + 1 < len(pieces):
        steeper_constant, steeper = pieces[best + 1]
        # The steeper one takes over beyond this context; up to there the step lies on this piece.
        last = (constant - steeper_constant) // (steeper - slope)
        most = min(most, (last - context) // decoding + 1)
    return constant + slope * context, slope * decoding, most

"""The event loop: asks a policy for a step, repeats the step as long as nothing changes, in closed form."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

from optimizer.capacity.step_time import StepClock, steps_to_reach
from optimizer.errors import PolicyError
from optimizer.simulator.decoding import UNLIMITED
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
    lags
        Whether a step is composed while the one before it runs (`Engine.async_scheduling`).

    Attributes
    ----------
    first_token, finish
        By request, in ticks; -1: not yet.
    events
        Passes of the loop.
    loop_seconds
        Wall time that `run` took.
    """

    def __init__(self, state: EngineState, policy: Policy, clock: StepClock, *, lags: bool = False) -> None:
        self.state, self.policy, self.clock = state, policy, clock
        self.first_token = [-1] * len(state.left)
        self.finish = [-1] * len(state.left)
        self.events = 0
        self.loop_seconds = 0.0
        self._pieces: dict[int, tuple[tuple[int, int], ...]] = {}
        self._prompt_step = clock.prompt_step
        self._lags = lags
        self._seen = 0
        """What arrived by then is known to an asynchronous engine: when the last step started."""
        self._upcoming = 0
        """When the next request arrives that is not known yet."""
        self._finished: list[int] = []
        self._known: list[int] = []
        self._unfinished = len(state.left)
        self._tells_finishes = policy.hears_finishes()
        self._most_tokens = state.token_budget if policy.has_budget else UNLIMITED
        # A step of more than `most_per_step` tokens may run out of blocks even where `tight` was not set.
        self._most_unchecked = min(self._most_tokens, state.most_per_step)
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
        s, policy = self.state, self.policy
        compose, asks_always = policy.step, policy.asks_always
        waiting, prefilling, chunks = s.waiting, s.prefilling, s.chunks
        arrival = [*s.arrival, NEVER]
        push = waiting.push
        # Above this many tokens in the cache, a step may run out of blocks, and they have to be counted.
        safe_tokens = s.safe_tokens
        shares_outputs = s.cache is not None and s.cache.shares_outputs
        lags, finished, known = self._lags, self._finished, self._known
        now, upcoming, next_arrival, events = 0, 0, arrival[0], 0
        self._upcoming = next_arrival
        while self._unfinished:
            events += 1
            if lags and (finished or known):
                self._let_go()
            if next_arrival <= now:
                seen = self._seen if lags else now
                while next_arrival <= seen:
                    push(upcoming)
                    upcoming += 1
                    next_arrival = arrival[upcoming]
                s.arrived = upcoming
                self._upcoming = next_arrival
            tight = s.context_sum + s.idle_tokens > safe_tokens
            if waiting or prefilling or tight or asks_always or s.held:
                preempted = s.preemptions
                s.begin(now, tight)
                compose(s)
                hold = s.hold
                if s.preemptions != preempted:
                    hold = 1  # what was freed may let somebody in at the next step
                    self._watch_for_livelock()
                elif shares_outputs and waiting and not chunks:
                    hold = 1  # so may a block that somebody fills
                decoding = 0 if s.stalled else s.num_decoding
                until = NEVER if s.deaf else next_arrival
                if lags and s.leaving:  # their seats and blocks are known to be free one step later
                    until = next_arrival
                    if waiting or s.held or s.cache is not None or self._tells_finishes:
                        hold = 1
                if chunks:
                    now = self._prefill(now, decoding, hold, until)
                    continue
                if s.wake < until:
                    until = s.wake
            else:
                hold, decoding, until = 0, s.num_decoding, next_arrival
                if lags and s.leaving and self._tells_finishes:
                    hold = 1
            # While nothing runs an arrival is looked at, whatever the policy said.
            now = (
                self._decode(now, decoding, hold, until, tight)
                if decoding
                else self._idle(now, min(until, next_arrival))
            )
        self.events = events

    def _decode(self, now: int, decoding: int, hold: int, until: int, tight: bool) -> int:
        """Execute steps that only decode, until somebody finishes or may change the plan; give the end."""
        s = self.state
        k = s._next_end - s.clock
        if 0 < hold < k:
            k = hold
        context = s.context_sum + decoding
        pieces = self._pieces.get(decoding) or self._pieces_of(decoding)
        if len(pieces) == 1:
            constant, slope = pieces[0]
            first, growth = constant + slope * context, slope * decoding
        else:
            first, growth, k = _largest_piece(pieces, context, decoding, k)
        if tight or s.context_sum + s.idle_tokens + k * decoding > s.safe_tokens:
            k = s.steps_that_fit(k)
            if k == 0:
                self._check_step(now, 0, decoding)
        end = now + first * k + growth * (k * (k - 1) // 2)
        if end > until:
            k, end = self._cut(now, first, growth, k, until)
        if self._lags:
            self._seen = end - first - growth * (k - 1)
        if s.cache is not None:
            s.use_decode_blocks(k)
        s.recorder.runs.append((now, end, first, k, decoding, context, 0))
        s.clock += k
        s.context_sum += k * decoding
        if s.clock == s._next_end:
            self._finish_decodes(end)
        return end

    def _pieces_of(self, decoding: int) -> tuple[tuple[int, int], ...]:
        pieces = self._pieces[decoding] = self.clock.decode(decoding)
        return pieces

    def _prefill(self, now: int, decoding: int, hold: int, until: int) -> int:
        """Execute a step with prompts in it, up to `hold` times; give the moment it ends."""
        s, chunks, computed, left = self.state, self.state.chunks, self.state.computed, self.state.left
        recorder = s.recorder
        rows, run = recorder.chunks, recorder.flushed + len(recorder.runs)
        if len(chunks) == 1:  # as nearly always
            request, tokens = chunks[0]
            c = computed[request]
            attention = tokens * c + tokens * (tokens + 1) // 2
            contexts = c + tokens
            rows += (run, request, tokens, c)
        else:
            tokens = attention = contexts = 0
            for request, n in chunks:
                c = computed[request]
                tokens += n
                attention += n * c + n * (n + 1) // 2
                contexts += c + n
                rows += (run, request, n, c)
        context = s.context_sum + decoding if decoding else 0
        first = self._prompt_step(tokens, attention, len(chunks), contexts, decoding, context)
        if tokens + decoding > self._most_unchecked or s.tight:
            self._check_step(now, tokens, decoding)
        k, end = 1, now + first
        self._seen = now
        if hold > 1 and len(chunks) == 1:
            hold = min(hold, left[chunks[0][0]] // tokens)
            k, end = self._repeat(now, first, (tokens, attention, contexts, decoding, context), hold, until)
        if s.cache is not None:
            s.use_decode_blocks(k if decoding else 0)
        recorder.runs.append((now, end, first, k, decoding, context, tokens))
        s.idle_tokens += tokens * k
        if decoding:
            s.clock += k
            s.context_sum += k * decoding
            if s.clock == s._next_end:
                self._finish_decodes(end)
        for request, n in chunks:
            computed[request] += n * k
            left[request] -= n * k
            if not left[request]:
                self._complete_prompt(request, end)
        chunks.clear()
        return end

    def _repeat(self, now: int, first: int, sums: tuple[int, ...], hold: int, until: int) -> tuple[int, int]:
        """Give how often a step with one chunk can be repeated, and when that ends."""
        s, step = self.state, self._prompt_step
        tokens, attention, contexts, decoding, context = sums
        k = hold
        if decoding and s._next_end - s.clock < k:
            k = s._next_end - s.clock
        if k == 1 or s.context_sum + s.idle_tokens + k * (tokens + decoding) > s.safe_tokens:
            return 1, now + first  # blocks may run out on the way: step by step

        more = tokens * tokens
        growth = step(tokens, attention + more, 1, contexts + tokens, decoding, context + decoding) - first
        while k > 2:
            # A maximum of affine functions is convex: if the last step lies on the line, all of them do.
            j = k - 1
            last = step(
                tokens, attention + j * more, 1, contexts + j * tokens, decoding, context + j * decoding
            )
            if last == first + j * growth:
                break
            k //= 2
        end = now + first * k + growth * (k * (k - 1) // 2)
        if end > until:
            k, end = self._cut(now, first, growth, k, until)
        self._seen = end - first - growth * (k - 1)
        return k, end

    def _cut(self, now: int, first: int, growth: int, k: int, until: int) -> tuple[int, int]:
        """Give how many of k steps are run before an arrival can change the plan, and when that is."""
        if not self._lags:
            k = steps_to_reach(until - now, first, growth)
        else:  # it is known at the end of the step that starts after it
            known = 1 if until <= now else steps_to_reach(until - now, first, growth) + 1
            k = min(k, known)
        return k, now + first * k + growth * (k * (k - 1) // 2)

    def _check_step(self, now: int, tokens: int, decoding: int) -> None:
        """Raise if the composed step is beyond the token budget, or takes more KV blocks than are free."""
        s = self.state
        whom = s.chunks[0][0] if s.chunks else next(iter(s.running))
        step = f"{self.policy.name} composed a step at {seconds(now):.6f} s, from request {s.requests.name(whom)} on,"
        if tokens + decoding > self._most_tokens:
            raise PolicyError(
                f"{step} of {tokens + decoding} tokens; the token budget is {self._most_tokens}"
            )
        if s.pages and s.overdrawn(decoding):
            raise PolicyError(
                f"{step} that takes more KV blocks than there are: {decoding} decodes need {s.decode_need()}, "
                f"and of {s.blocks} blocks {s.free_blocks()} are free; preempt, or admit less"
            )

    def _complete_prompt(self, request: int, now: int) -> None:
        """A prompt is done: its first token (or its next, after a preemption) is out."""
        s = self.state
        s.prefilling.remove(request)
        s.idle_tokens -= s.computed[request]
        self._preemptions_at_progress = s.preemptions
        if self.first_token[request] < 0:
            self.first_token[request] = now
        if s.completed(request):
            self._done(request, now)

    def _finish_decodes(self, now: int) -> None:
        s = self.state
        self._preemptions_at_progress = s.preemptions
        if s.cache is not None:
            s.publish_decoded(whole_steps=True)
        for request in s.pop_finished():
            self._done(request, now)

    def _done(self, request: int, now: int) -> None:
        s = self.state
        self.finish[request] = now
        self._unfinished -= 1
        # That a finish is known only a step later matters if anybody waits for the seat or the blocks, or counts
        # on hearing of it.
        if self._lags and (
            s.waiting
            or self._upcoming <= now
            or self._tells_finishes
            or s.context_sum + s.idle_tokens + s.computed[request] > s.safe_tokens
        ):
            s.leave_later(request)
            self._finished.append(request)
            return
        if s.cache is not None:
            s.cache.release(request, s.computed[request])
        del s.running[request]
        if self._tells_finishes:
            self.policy.finished(s, request)

    def _let_go(self, *, everybody: bool = False) -> None:
        """An asynchronous engine learns of finishes one step late: free what was finished before the last step."""
        s, finished, known = self.state, self._finished, self._known
        if everybody:
            known += finished
            finished.clear()
        for request in known:
            s.leave(request)
            if self._tells_finishes:
                self.policy.finished(s, request)
        known[:] = finished
        finished.clear()

    def _idle(self, now: int, until: int) -> int:
        """Nothing runs: go to the next arrival, or ask again if the policy has just thrown somebody out."""
        s = self.state
        self._seen = now  # no step is in flight: everything that is there is known
        if s.now == now and s.preemptions > self._preemptions_at_progress and s.waiting and not s.running:
            self._preemptions_at_progress = s.preemptions
            return now
        if s.leaving:
            self._let_go(everybody=True)
            return now
        if until >= NEVER:
            raise PolicyError(
                f"{self.policy.name} is deadlocked at {seconds(now):.6f} s: it lets nothing run, nothing is to arrive, "
                f"and {self._unfinished} requests are not finished; {self._who_waits()}, {len(s.running)} hold KV"
            )
        if until <= now and s.wake <= now:
            raise PolicyError(
                f"{self.policy.name} lets nothing run at {seconds(now):.6f} s and asks to be woken at a moment that has passed; "
                f"{self._who_waits()}"
            )
        self._seen = max(now, until)
        return self._seen

    def _who_waits(self) -> str:
        first = next(iter(self.state.waiting), None)
        return "nobody waits" if first is None else f"request {self.state.requests.name(first)} waits first"

    def _watch_for_livelock(self) -> None:
        s = self.state
        if s.preemptions - self._preemptions_at_progress > 1000 + 4 * s.max_num_seqs:
            raise PolicyError(
                f"{self.policy.name} is livelocked at {seconds(s.now):.6f} s: "
                f"{s.preemptions - self._preemptions_at_progress} preemptions and not one prompt completed or request "
                f"finished in between; {self._who_waits()}"
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

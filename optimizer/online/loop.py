"""The loop itself, for one thread: requests come in, steps go out, reports change what is believed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from optimizer.capacity.step_time import StepClock
from optimizer.online.advice import Advice
from optimizer.online.flights import Flight, Flights
from optimizer.online.heuristic import Composer, Draft
from optimizer.online.knobs import Levels, OnlineObjective
from optimizer.online.lengths import Lengths
from optimizer.online.line import Order
from optimizer.online.messages import Admission, Reason, Request, Step
from optimizer.online.plan import Planner
from optimizer.online.rule import Rule
from optimizer.online.state import GONE, WAITING, Entry, State
from optimizer.online.stats import Counts, Mean
from optimizer.problem.engine import Engine
from optimizer.units import TICKS_PER_SECOND


class Loop:
    """What `RollingHorizon` does, with moments that never run backwards.

    Parameters
    ----------
    engine, objective, window_s, max_waiting
        As of `RollingHorizon`.
    levels
        Options of the rule.
    lengths
        Predictions.
    planner
        Who makes plans; None: nobody.

    Attributes
    ----------
    factor
        How much longer steps take than the engine's card says.
    settled
        Requests that ended without a report; the next report tells of them.
    closed
        Whether anything is still taken in and computed.
    """

    def __init__(
        self,
        engine: Engine,
        objective: OnlineObjective,
        levels: Levels,
        lengths: Lengths,
        planner: Planner | None,
        *,
        window_s: float,
        max_waiting: int,
    ) -> None:
        self.engine, self.lengths, self.max_waiting = engine, lengths, max_waiting
        self.rule = Rule(engine, objective, lengths, levels)
        self.state = State(engine)
        self.order = Order(self.rule.line())
        self.composer = Composer(self.state, self.order, self.rule)
        self.counts = Counts()
        self.flights = Flights(self.state, self.composer, self.counts)
        self.advice = Advice(planner, window_s, self.state, self.order, self.rule, self.counts)
        self.last_finish_s = self.composed_s = 0.0
        self.factor = 1.0
        self.settled: list[str] = []
        self.ttft, self.latency = Mean(), Mean()
        self.closed = False
        self._window_s = window_s
        self._clock = StepClock(engine.step_time)

    def submit(self, request: Request, now_s: float) -> Admission:
        """Take a request in, or say why not."""
        s, counts = self.state, self.counts
        cap = s.cap_of(request)
        counts.submitted += 1
        refusal = self._refusal(request, cap)
        if refusal is not None:
            reason, message = refusal
            counts.rejected[reason] = counts.rejected.get(reason, 0) + 1
            return Admission("rejected", reason, message)
        entry = s.add(request, now_s, cap)
        try:
            self.rule.enter(entry)
        except Exception:
            counts.rule_errors += 1
        self.advice.arrivals.add(entry)
        self.order.line.push(entry)
        alone = s.waiting == 1 and s.taken_seats < s.seats
        free = alone and self.composer.fits(entry)
        return Admission("admitted" if free else "queued", max_output_tokens=cap)

    def _refusal(self, request: Request, cap: int) -> tuple[Reason, str] | None:
        s = self.state
        if self.closed:
            return "closed", "the horizon is closed"
        if request.id in s.entries:
            return "duplicate", f"request {request.id} is there already"
        if cap < 1:
            room = min(s.blocks * s.block_tokens, self.engine.max_model_len or s.blocks * s.block_tokens)
            return (
                "too-long",
                f"a prompt of {request.prompt_tokens} tokens; the engine has room for {room} in all",
            )
        if s.waiting >= self.max_waiting:
            return "overload", f"{s.waiting} requests wait; the limit is {self.max_waiting}"
        why = self.rule.hopeless(request)
        return None if why is None else ("slo", why)

    def next_step(self, now_s: float) -> Step:
        """Decide what the engine computes next."""
        s, draft = self.state, Draft()
        if self.closed:
            return Step(s.number, now_s)
        source = self.advice.consult(now_s, self.factor)
        try:
            self.composer.compose(draft, now_s)
        except Exception:
            # The step must come: what stands in the draft is sound, and the rest is decided without the rule.
            self.counts.rule_errors += 1
            source = "fcfs"
            self.composer.first_come(draft, now_s)
        self.counts.preemptions += len(draft.preempt)
        if not draft.chunks and not draft.decode:
            source = "idle"
        step = Step(s.number, now_s, tuple(draft.prefill), draft.decode, tuple(draft.preempt), source)
        self.counts.steps[source] = self.counts.steps.get(source, 0) + 1
        if step:
            self.composed_s = now_s
            self.rule.forget_begun(s.waiting)
            unseen = self.flights.add(Flight(step, draft.chunks, self._expected_ticks(draft)))
            s.number += 1
            if unseen is not None:
                self._settle(unseen, now_s)
        elif s.ended and now_s - self.composed_s > self._window_s:
            self._settle(s.number, now_s)
        return step

    def _expected_ticks(self, draft: Draft) -> int:
        s = self.state
        tokens = attention = contexts = fresh = 0
        for (entry, _, sampled), (_, n) in zip(draft.chunks, draft.prefill, strict=True):
            after = s.context(entry)
            tokens += n
            attention += n * (after - n) + n * (n + 1) // 2
            contexts += after
            fresh += after if sampled else 0
        # Those that have just sampled their first token are among the decoding ones, and did not decode.
        context = max(s.context_sum - fresh, 0) if draft.decode else 0
        return self._clock.step(tokens, attention, len(draft.chunks), contexts, len(draft.decode), context)

    def cancel(self, request_id: str) -> bool:
        """Forget a request, whatever it does; say whether it was there."""
        entry = self.state.entries.get(request_id)
        if entry is None:
            self.counts.unknown_ids += 1
            return False
        self._forget(entry)
        self.counts.cancelled += 1
        return True

    # ---- reports

    def observe(
        self, step: Step, finished_s: float, finished: Iterable[str], tokens: Mapping[str, int]
    ) -> tuple[str, ...]:
        """Learn what became of a step; give all who ended with it."""
        s, flights, number = self.state, self.flights, step.number
        flight = flights.take(step)
        if flight is None:
            return ()
        self._learn_step_time(flight, finished_s)
        for name, computed in tokens.items():
            flights.correct(flight, name, computed)
        for entry, _, _ in flight.chunks:
            waits = entry.first_token_s is None and entry.phase != GONE
            if waits and s.generated(entry) > flights.ahead(number, entry):
                entry.first_token_s = finished_s
                self.ttft.add(finished_s - entry.arrival_s)
        done, self.settled = self.settled, []
        for name in finished:
            found = flights.find(number, name)
            if found is not None:
                done.append(name)
                self._finish(found, number, finished_s)
        self._settle(number, finished_s, done)
        return tuple(done)

    def _finish(self, entry: Entry, number: int, finished_s: float) -> None:
        # Tokens of later steps were planned before anybody knew that it would end.
        length = max(1, self.state.generated(entry) - self.flights.ahead(number, entry))
        self._forget(entry)
        self.counts.finished += 1
        self.latency.add(finished_s - entry.arrival_s)
        self.lengths.observe(entry.request, length)

    def _settle(self, number: int, now_s: float, done: list[str] | None = None) -> None:
        """End who reached its cap in a step up to this one."""
        for entry in [e for e in self.state.ended.values() if e.ended <= number]:
            (self.settled if done is None else done).append(entry.request.id)
            self._finish(entry, number, now_s)

    def _forget(self, entry: Entry) -> None:
        s = self.state
        if entry.phase == WAITING:
            self.order.line.gone(entry)
        else:
            self.rule.stopped(entry, s.generated(entry))
        self.composer.leave(entry)
        s.remove(entry)

    def _learn_step_time(self, flight: Flight, finished_s: float) -> None:
        if not flight.expected_ticks:
            return  # it only dropped KV
        took = finished_s - max(flight.step.now_s, self.last_finish_s)
        self.last_finish_s = max(self.last_finish_s, finished_s)
        seen = took * TICKS_PER_SECOND / flight.expected_ticks
        # A pause of the caller is no step that took so long.
        if 0.05 < seen < 20:
            self.factor += 0.02 * (seen - self.factor)

"""One run ahead from a snapshot: a state, a rule and a composer of its own, until all are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from optimizer.online.heuristic import Composer, Draft
from optimizer.online.knobs import Knobs
from optimizer.online.lengths import Lengths
from optimizer.online.line import Order
from optimizer.online.messages import Request
from optimizer.online.rule import Rule
from optimizer.online.state import PREFILL, WAITING, Entry, State
from optimizer.policies.horizon_rules import EXEMPT_S
from optimizer.units import TICKS_PER_SECOND

if TYPE_CHECKING:
    from optimizer.online.rollout import Rollouts, Row, Scenario

_STRIDE = 8
"""Decode steps after which a refused admission is tried again."""
_MOST_STEPS = 4000


class Run:
    """One run: a state, a rule and a composer of its own."""

    def __init__(self, rollouts: Rollouts, knobs: Knobs, order: Sequence[int], scenario: Scenario) -> None:
        self._r, self._scenario, self._truth = rollouts, scenario, scenario.truth
        self.state = State(rollouts.engine)
        self._rule = rule = Rule(rollouts.engine, rollouts.objective, Lengths(), rollouts.levels)
        rule.knobs, rule.batch, rule.usual_wait_s = knobs, rollouts.batch, rollouts.usual_wait_s
        self._order = Order(rule.line())
        self._composer = Composer(self.state, self._order, rule)
        self._ends: list[tuple[int, int]] = []
        self._rows: dict[int, Row] = {}
        self.finished: dict[int, float] = {}
        self.first: dict[int, float] = {}
        self.started: dict[int, float] = {}
        for row in rollouts.running:
            entry = self._enter(row)
            entry.phase, entry.life = PREFILL, row.life
            self.state.prefilling[entry.serial] = entry
            self.state.move(entry, row.known, row.computed)
            self._composer.enter(entry)
            self._await(entry)
        for row in rollouts.waiting:
            self._push(row)
        by_serial = self.state.by_serial
        self._order.adopt([by_serial[serial] for serial in order if serial in by_serial])
        self._to_come = deque(scenario.others)
        self._now = self._go(rollouts.now_s)

    def _push(self, row: Row) -> None:
        entry = self._enter(row)
        self._order.line.push(entry)
        self._rule.expect(entry)

    def _arrive(self, now: float) -> None:
        """Let those come whose time it is."""
        while self._to_come and self._to_come[0].arrival_s <= now:
            self._push(self._to_come.popleft())

    def _enter(self, row: Row) -> Entry:
        request = Request(str(row.serial), row.prompt, row.cap, weight=row.weight, cached_tokens=row.cached)
        self.state.serials = row.serial
        entry = self.state.add(request, row.arrival_s, row.cap)
        entry.known, entry.mu, entry.sigma, entry.most = row.known, row.mu, row.sigma, row.most
        entry.key, entry.due_s = row.key, row.due_s
        self._rows[row.serial] = row
        return entry

    def _await(self, entry: Entry) -> None:
        """Note when a decoding request will have all its tokens."""
        s = self.state
        if entry.request.id in s.decoding:
            end = self._truth[entry.serial] + entry.request.prompt_tokens - entry.known
            heappush(self._ends, (end, entry.serial))

    def _go(self, now: float) -> float:
        """Run until all are done, or for so many steps; give the moment."""
        s, steps = self.state, 0
        self._end(now)
        while (s.entries or self._to_come) and steps < _MOST_STEPS:
            self._arrive(now)
            draft = Draft()
            waited, there = s.waiting, len(s.entries)
            self._composer.compose(draft, now)
            steps += 1
            if not draft.chunks and not draft.decode:
                if not self._to_come:
                    break
                now = max(now, self._to_come[0].arrival_s)
                continue
            now += self._time(draft) / TICKS_PER_SECOND
            for entry, _, sampled in draft.chunks:
                self.started.setdefault(entry.serial, now)
                if sampled:
                    self.first.setdefault(entry.serial, now)
                    self._await(entry)
            s.number += 1
            self._end(now)
            # Where somebody left, somebody else may be let in at once.
            if not draft.chunks and waited == s.waiting and (there == len(s.entries) or not waited):
                now = self._stride(now)
        return now

    def _stride(self, now: float) -> float:
        """Nobody could be admitted: decode on for a few steps."""
        s = self.state
        steps = min(_STRIDE if s.waiting or self._to_come else 64, s.next_cap() - s.clock)
        if self._ends:
            steps = min(steps, self._ends[0][0] - s.clock)
        if s.prefilling or steps < 1 or not s.decoding or s.decode_need(steps) > s.free_blocks:
            return now
        middle = s.context_sum + len(s.decoding) * (steps + 1) // 2
        took = steps * self._r.clock.step(decode_seqs=len(s.decoding), decode_context=middle)
        s.decode(steps)
        now += took / TICKS_PER_SECOND
        self._end(now)
        return now

    def _end(self, now: float) -> None:
        """Let those go who have all their tokens."""
        s, ends = self.state, self._ends
        while ends and ends[0][0] <= s.clock:
            _, serial = heappop(ends)
            entry = s.by_serial.get(serial)
            # It may have been thrown out meanwhile.
            if entry is None or s.generated(entry) < self._truth[serial]:
                continue
            self._leave(entry, now)
        for entry in list(s.ended.values()):
            self._leave(entry, now)

    def _leave(self, entry: Entry, now: float) -> None:
        self.finished[entry.serial] = now
        self._composer.leave(entry)
        if entry.phase == WAITING:
            self._order.line.gone(entry)
        self.state.remove(entry)

    def _time(self, draft: Draft) -> int:
        s = self.state
        chunks = [(s.context(e), n) for (e, _, _), (_, n) in zip(draft.chunks, draft.prefill, strict=True)]
        tokens = sum(n for _, n in chunks)
        context = sum(after for after, _ in chunks)
        attention = sum(n * after - n * (n - 1) // 2 for after, n in chunks)
        decodes = len(draft.decode)
        return self._r.clock.step(
            tokens, attention, len(chunks), context, decodes, s.context_sum if decodes else 0
        )

    def value(self) -> float:
        """Judge the run; who is not done by its end is charged for what it has left."""
        now, begin, objective = self._now, self._r.now_s, self._r.objective
        if objective == "throughput":
            return now - begin
        total = missed = 0.0
        pace = max(now - begin, 1e-3) / max(self.state.clock, 1)
        for serial, row in self._rows.items():
            length = self._truth[serial]
            end = self.finished.get(serial)
            if end is None:
                end = now + pace * (length - row.known + row.prompt)
            total += row.weight * (end - row.arrival_s)
            if objective == "goodput":
                missed += self._misses(row, end)
        if objective == "goodput":
            return missed + 1e-6 * total
        # Who is not shown, and who comes after the window, starts as much later as its last one does. Without this, whatever
        # serves those who run at the cost of throughput looks good in every window, and the queue grows.
        behind = self._r.behind * (max(self.started.values(), default=begin) - begin)
        excess = max(0.0, self.longest_wait_s() - self._r.longest_wait_s(self._scenario))
        return total + behind + len(self._rows) * excess

    def longest_wait_s(self) -> float:
        """Give the longest wait for a first token, of those who had none and whose wait is protected."""
        return max(
            (
                self.first.get(i, self._now) - r.arrival_s
                for i, r in self._rows.items()
                if r.known == r.prompt and r.key - r.arrival_s < EXEMPT_S
            ),
            default=0.0,
        )

    def _misses(self, row: Row, end: float) -> bool:
        length, first = self._truth[row.serial], self.first.get(row.serial)
        if row.known == row.prompt and (first is None or first > row.due_s):
            return True
        begin = row.arrival_s if first is None else first
        level = self._r.levels.tpot_slo_s if row.tpot_slo_s is None else row.tpot_slo_s
        return length > 1 and (end - begin) / (length - 1) > level

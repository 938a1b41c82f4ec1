"""What a plan is worth: the loop itself, run ahead from a snapshot, on the engine's step times and drawn lengths.

The heuristic is the base policy and a plan changes its order or its knobs, so a plan that is worth less than the heuristic
alone is known as such before anybody follows it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import exp, log
from statistics import NormalDist
from typing import Any

import numpy as np

from optimizer.capacity.step_time import StepClock
from optimizer.online.heuristic import Composer, Draft
from optimizer.online.lengths import Lengths
from optimizer.online.line import Order
from optimizer.online.messages import Request
from optimizer.online.plan import Snapshot
from optimizer.online.rule import Knobs, Levels, OnlineObjective, Rule
from optimizer.online.snapshot import COLUMNS
from optimizer.online.state import DECODE, PREFILL, WAITING, Entry, State
from optimizer.policies.horizon_rules import Belief, remaining_tokens
from optimizer.problem.engine import Engine
from optimizer.units import TICKS_PER_SECOND

_STRIDE = 8
"""Decode steps after which a refused admission is tried again."""
_MOST_STEPS = 4000
_MOST_DRAWN = 48
"""Requests that nobody has seen."""
_NORMAL = NormalDist()
_LEAST_SIGMA = 0.05


@dataclass(frozen=True, slots=True)
class Row:
    """A request of a snapshot.

    Attributes
    ----------
    serial, prompt, cap, mu, sigma, most, arrival_s, due_s, weight, key, life
        As `optimizer.online.snapshot` writes them.
    known, computed
        Tokens of its prompt and output so far, and those in the KV cache.
    """

    serial: int
    known: int
    computed: int
    cap: int
    mu: float
    sigma: float
    most: float
    key: float
    arrival_s: float
    due_s: float
    life: int
    prompt: int
    weight: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """What may happen.

    Attributes
    ----------
    truth
        By serial: output tokens.
    others
        Requests that nobody has seen: those that wait behind the window, and arrivals, in order.
    """

    truth: dict[int, int]
    others: tuple[Row, ...]


class Rollouts:
    """Runs the loop ahead from a moment.

    Parameters
    ----------
    engine, objective
        As the horizon's.
    seen
        The moment.
    levels
        Of the horizon's rule.
    window_s
        Arrivals are expected for so long.
    scenarios
        Draws of lengths and arrivals; every plan is judged by the same. As many more are kept to judge the best anew.
    seed
        Of the draws.
    """

    def __init__(
        self,
        engine: Engine,
        objective: OnlineObjective,
        seen: Snapshot,
        levels: Levels,
        *,
        window_s: float = 5.0,
        scenarios: int = 3,
        seed: int = 0,
    ) -> None:
        self.engine = engine.model_copy(update={"step_time": engine.step_time.scaled(float(seen["factor"]))})
        self.objective, self.levels = objective, levels
        self.clock = StepClock(self.engine.step_time)
        self.now_s = float(seen["now_s"])
        self._decode_clock = int(seen["clock"])
        self.batch, self.usual_wait_s = int(seen["batch"]), float(seen["usual_wait_s"])
        self.running = [self._row(values) for values in seen["running"]]
        self.waiting = [self._row(values) for values in seen["waiting"]]
        self._recent = [self._row(values) for values in seen["recent"]]
        self._rate, hidden = float(seen["rate"]), int(seen["hidden"])
        self._drawn_behind = min(hidden, _MOST_DRAWN) if self._recent else 0
        self.behind = hidden - self._drawn_behind + self._rate * window_s
        """Requests that come after those of a run: waiting ones of which nothing is shown, and a window's arrivals."""
        rng = np.random.default_rng(seed)
        self._chosen_by = [self._draw(rng, window_s) for _ in range(scenarios)]
        self._kept = [self._draw(rng, window_s) for _ in range(scenarios)]
        self._longest: dict[int, float] = {}

    def _row(self, values: Sequence[Any]) -> Row:
        row = dict(zip(COLUMNS, values, strict=True))
        if row.pop("phase") == DECODE:
            row["known"] += self._decode_clock
            row["computed"] = row["known"] - 1
        return Row(**row)

    def _draw(self, rng: np.random.Generator, window_s: float) -> Scenario:
        """Draw who comes, and the length of every request, above what is out."""
        others = list(self._others(rng, window_s))
        truth = {}
        rows = [*self.running, *self.waiting, *others]
        for row, u in zip(rows, rng.random(len(rows)).tolist(), strict=True):
            generated, sigma = row.known - row.prompt, max(row.sigma, _LEAST_SIGMA)
            below = _NORMAL.cdf((log(generated) - row.mu) / sigma) if generated else 0.0
            q = min(max(below + u * (1 - below), 1e-6), 1 - 1e-6)
            length = round(exp(row.mu + sigma * _NORMAL.inv_cdf(q)))
            truth[row.serial] = min(max(length, generated + 1), row.cap)
        return Scenario(truth, tuple(others))

    def _others(self, rng: np.random.Generator, window_s: float) -> Iterator[Row]:
        """Give requests like the last ones: some that wait behind those that are shown, then arrivals."""
        serial = max((row.serial for row in (*self.running, *self.waiting, *self._recent)), default=0)
        last = max((row.key for row in self.waiting), default=0.0)
        now, until = self.now_s, self.now_s + window_s
        for number in range(_MOST_DRAWN):
            comes = number >= self._drawn_behind
            if comes:
                now += rng.exponential(1 / self._rate) if self._rate > 0 else math.inf
            if now > until or not self._recent:
                return
            like = self._recent[int(rng.integers(len(self._recent)))]
            serial += 1
            later = now - like.arrival_s
            yield replace(
                like, serial=serial, known=like.prompt, computed=0, life=-1, arrival_s=now,
                key=like.key + later if comes else last, due_s=like.due_s + later,
            )  # fmt: skip

    def remaining(self, row: Row) -> int:
        """Give the output tokens that a request is expected to have left, at least 1."""
        generated = row.known - row.prompt
        expected = remaining_tokens(Belief(row.mu, max(row.sigma, _LEAST_SIGMA)), generated)
        return max(1, min(round(expected), row.cap - generated))

    def value(self, order: Sequence[int], knobs: Knobs) -> float:
        """Give what a plan is worth, smaller is better: the mean over the scenarios.

        `latency`, `fair`: seconds from arrival to the end, by weight, over all requests; and as many seconds again as the
        longest wait for a first token is longer than with the heuristic alone, or the mean would be bought from the last
        percent. `throughput`: seconds until all is done. `goodput`: requests that miss a level.
        """
        return self._mean(order, knobs, self._chosen_by)

    def value_anew(self, order: Sequence[int], knobs: Knobs) -> float:
        """Give the same by scenarios that nobody has chosen a plan by: the best of many is partly luck."""
        return self._mean(order, knobs, self._kept)

    def _mean(self, order: Sequence[int], knobs: Knobs, scenarios: list[Scenario]) -> float:
        return sum(_Run(self, knobs, order, scenario).value() for scenario in scenarios) / len(scenarios)

    def longest_wait_s(self, scenario: Scenario) -> float:
        """Give the longest wait for a first token with the heuristic alone."""
        found = self._longest.get(id(scenario))
        if found is None:
            found = self._longest[id(scenario)] = _Run(self, Knobs(), (), scenario).longest_wait_s()
        return found

    def starts(self, order: Sequence[int], knobs: Knobs) -> dict[int, float]:
        """Give the moments at which requests start in the first scenario."""
        return _Run(self, knobs, order, self._chosen_by[0]).started


class _Run:
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
        request = Request(str(row.serial), row.prompt, row.cap, weight=row.weight)
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
        tokens = sum(n for _, n, _ in draft.chunks)
        context = sum(s.context(e) for e, _, _ in draft.chunks)
        attention = sum(n * s.context(e) - n * (n - 1) // 2 for e, n, _ in draft.chunks)
        decodes = len(draft.decode)
        return self._r.clock.step(
            tokens, attention, len(draft.chunks), context, decodes, s.context_sum if decodes else 0
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
        """Give the longest wait for a first token, of those who had none."""
        return max(
            (
                self.first.get(i, self._now) - r.arrival_s
                for i, r in self._rows.items()
                if r.known == r.prompt
            ),
            default=0.0,
        )

    def _misses(self, row: Row, end: float) -> bool:
        length, first = self._truth[row.serial], self.first.get(row.serial)
        if row.known == row.prompt and (first is None or first > row.due_s):
            return True
        begin = row.arrival_s if first is None else first
        return length > 1 and (end - begin) / (length - 1) > self._r.levels.tpot_slo_s

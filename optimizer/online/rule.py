"""The decision rule of the heuristic: who goes first, how many run, how much of the prompts a step computes.

The numbers are those of the `horizon` policy (`optimizer.policies.horizon_rules`); here they meet a live loop.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import NormalDist
from typing import Any, get_args

from optimizer.errors import InputError
from optimizer.online.knobs import Knobs, Levels, OnlineObjective
from optimizer.online.lengths import Lengths
from optimizer.online.line import DueLine, KeyLine, Line, ShareLine
from optimizer.online.messages import Request
from optimizer.online.state import GONE, PREFILL, Entry, State
from optimizer.policies.horizon_rules import (
    EARNED,
    EXEMPT_S,
    HARDLY,
    LARGE,
    MOST_CREDIT,
    Belief,
    in_time,
    patience,
    place_s,
    pressure,
    remaining_tokens,
)
from optimizer.policies.horizon_steps import LATE, LEVELS, USUAL, StepRule, WorkPrices, chunk_within, step_s
from optimizer.policies.recent import Recent
from optimizer.problem.engine import Engine

_MOST_DUE = 128
"""Requests whose first token is due that are looked at in a step."""
_ONE_SIGMA = NormalDist().cdf(1.0)
_MOST_DEBT = 100.0
"""In TPOT levels: a clock that jumps must not forbid stalls for good."""
_MOST_CACHED = 4096
_MEMORY = 5000
_RECENT = 1000


class Rule:
    """Places by arrival and work, a batch that decodes fastest, prompts in efficient steps.

    Parameters
    ----------
    engine
        For its step times.
    objective
        What counts.
    lengths
        Predictions.
    levels
        Options.

    Attributes
    ----------
    knobs
        What the plan in force sets.
    batch
        How many requests decode fastest together, at the usual context.
    usual_wait_s
        Of a hundred requests of late, all but one waited less.

    Raises
    ------
    InputError
        If the objective is unknown.
    """

    def __init__(self, engine: Engine, objective: OnlineObjective, lengths: Lengths, levels: Levels) -> None:
        if objective not in get_args(OnlineObjective):
            raise InputError(
                f"{objective!r} is no objective; expected one of {', '.join(get_args(OnlineObjective))}",
                field="objective",
            )
        self.objective, self.levels = objective, levels
        self.deviations = NormalDist().inv_cdf(levels.confidence)
        self._lengths = lengths
        self._budget, self._seats = engine.max_num_batched_tokens, engine.max_num_seqs
        self._steps = StepRule(engine.step_time, self._budget, self._seats)
        self._clock = self._steps.clock
        self._prices = WorkPrices.of(self._clock, self._budget, self._seats, float(engine.kv_tokens))
        self._within_tbt: dict[tuple[int, int], int] = {}
        self._block_tokens = engine.block_tokens
        self._certain = engine.preemption == "none"
        self._shares: ShareLine | None = None
        self._context, self._submitted = 0.0, 0
        self._works, self._prefills, self._exempted = Recent(_RECENT), Recent(_RECENT), 0
        self._unseen: deque[Entry] = deque()
        self._waits = Recent(_RECENT)
        self._waited_s = 0.0
        self._credit_s = self._credited_s = 0.0
        self._credited_clock = 0
        self.batch = self._seats
        self.usual_wait_s = 0.0
        self.knobs = Knobs()

    # ---- requests

    def line(self) -> Line:
        """Give the line in which requests wait."""
        if self.objective == "fair":
            self._shares = ShareLine()
            return self._shares
        return DueLine() if self.objective == "goodput" else KeyLine()

    def enter(self, entry: Entry) -> None:
        """Form a belief about a new request's length, and give it its place."""
        request, cap = entry.request, entry.cap
        median = self._lengths.quantile(request, 0, 0.5)
        above = self._lengths.quantile(request, 0, _ONE_SIGMA)
        entry.mu = math.log(min(max(median, 1.0), cap))
        entry.sigma = max(math.log(max(above, 1.0)) - entry.mu, 0.0)
        prompt = request.prompt_tokens
        longest = cap if self._certain else min(math.exp(entry.mu + HARDLY * entry.sigma), cap)
        entry.most = prompt + longest + self._block_tokens
        output = min(remaining_tokens(Belief(entry.mu, entry.sigma), 0), cap)
        self._learn_context(prompt + output / 2)
        prefill = self._prices.prefill_s(prompt) - self._prices.prefill_s(entry.cached)
        work = (prefill + self._prices.decode_s(prompt, output)) / request.weight
        self._works.add(work)
        patience_s = 0.0
        if self.objective != "throughput":
            large = self._works.quantile(LARGE) or 0.0
            patience_s = patience(self.levels.patience_s, self.usual_wait_s, large)
        entry.key = place_s(entry.arrival_s, work, patience_s)
        level = request.ttft_slo_s
        entry.due_s = entry.arrival_s + (self.levels.ttft_slo_s if level is None else level)
        if self._is_exempt(prefill):
            entry.key += EXEMPT_S
        else:
            self.expect(entry)

    def _is_exempt(self, prefill_s: float) -> bool:
        """Choose those with the longest prompts, as they come, up to the share."""
        share = self.levels.exempt
        if not share:
            return False
        self._prefills.add(prefill_s)
        longest = self._prefills.quantile(1 - 2 * share) or 0.0
        chosen = self._exempted < share * self._submitted - 1 and prefill_s > longest
        self._exempted += chosen
        return chosen

    def expect(self, entry: Entry) -> None:
        """Count a request among those that wait for their first token."""
        self._unseen.append(entry)

    def _learn_context(self, context: float) -> None:
        self._submitted += 1
        self._context += (context - self._context) / min(self._submitted, _MEMORY)
        self.batch = self._steps.batch(self._context)

    def begun(self, entry: Entry, now_s: float) -> None:
        """Learn that the step that gives a request's first token was composed."""
        if entry.key - entry.arrival_s < EXEMPT_S:
            self._waits.add(now_s - entry.arrival_s)
            self.usual_wait_s = self._waits.quantile(0.99) or 0.0

    def started(self, entry: Entry) -> None:
        """Charge a tenant for a request that has begun: its prompt, and twice what is expected of its output."""
        if self._shares is not None:
            expected = remaining_tokens(Belief(entry.mu, entry.sigma), 0)
            generated = entry.known - entry.request.prompt_tokens
            self._charge(entry, entry.known + 2 * (expected - generated))

    def stopped(self, entry: Entry, generated: int) -> None:
        """Settle the charge with what the request really generated: it is finished, cancelled or thrown out."""
        if self._shares is not None and entry.life >= 0:
            self._charge(entry, 2 * (generated - remaining_tokens(Belief(entry.mu, entry.sigma), 0)))

    def _charge(self, entry: Entry, work: float) -> None:
        assert self._shares is not None
        self._shares.charge(entry.request.tenant, work / entry.request.weight)

    def hopeless(self, request: Request) -> str | None:
        """Say which of its levels a request cannot meet on an idle engine; None: there is none."""
        if self.objective != "goodput":
            return None
        full, rest = divmod(max(1, request.prompt_tokens - request.cached_tokens), self._budget)
        first = full * step_s(self._clock, self._budget, 0) + step_s(self._clock, rest, 0)
        token = step_s(self._clock, 0, 0, 1, request.prompt_tokens)
        for what, least, level in (
            ("first token takes", first, request.ttft_slo_s),
            ("next tokens take", token, request.tpot_slo_s),
        ):
            if level is not None and least > level:
                return f"its {what} {least:.3g} s at least, on an idle engine; the level is {level} s"
        return None

    # ---- the step

    def seats(self) -> int:
        """Give how many requests may run."""
        return min(self.batch, self._seats)

    def prompt_tokens(self, state: State, prefix: int, now_s: float) -> int:
        """Give how many prompt tokens the next step may compute beside its decodes.

        Parameters
        ----------
        prefix
            Tokens that the first prompt has computed already.
        """
        return self._beside_decodes(state, self._level(now_s), prefix)

    def _beside_decodes(self, state: State, level: int, prefix: int) -> int:
        decodes, context = len(state.decoding), state.context_sum
        tokens = self._steps.tokens(level, decodes, context, prefix)
        if self.levels.tbt_s is not None and decodes:
            tokens = min(tokens, self._within(decodes, context))
        return min(tokens, self.knobs.chunk_tokens or tokens, state.token_budget - decodes)

    def _within(self, decodes: int, context: int) -> int:
        """Give the prompt tokens with which a step keeps to `tbt_s`; one at least."""
        assert self.levels.tbt_s is not None
        key = (decodes >> 2, context >> 13)
        found = self._within_tbt.get(key)
        if found is None:
            if len(self._within_tbt) > _MOST_CACHED:
                self._within_tbt.clear()
            found = self._within_tbt[key] = chunk_within(
                self._clock, self.levels.tbt_s, self._budget, 0, key[0] + 1 << 2, key[1] + 1 << 13
            )
        return found

    def urgent(self, state: State, line: Line, prefix: int, now_s: float) -> tuple[list[Entry], int, bool]:
        """Give those whose first token can be in time, the prompt tokens that the step has for them, and whether alone.

        As many as can be in time (Moore and Hodgson 1968), among the first that are due. For them decodes are stalled, on
        credit: every decoded token earns a part of its TPOT level, all steps spend.
        """
        assert isinstance(line, DueLine)
        steps = self._steps
        if not state.decoding:  # nobody is stalled: an idle engine earns nothing, and spends nothing
            self._credited_s, self._credited_clock = now_s, state.clock
        alone = bool(state.decoding) and self._earned_s(state, now_s) >= steps.limit_s
        if alone:
            most, time_s = min(steps.tokens(0, 0, 0, prefix), state.token_budget), steps.limit_s
        else:
            most, time_s = self._beside_decodes(state, LEVELS, prefix), steps.limit_s * LATE / USUAL
        if most <= 0:
            return [], 0, False
        begun = [e for e in state.prefilling.values() if not _has_begun(e)]
        waiting = {e.serial: e for e in (*begun, *line.due(now_s, _MOST_DUE))}
        # Half a step to spare: what is computed in a step is there at its end.
        soon = now_s + steps.limit_s / 2
        items = [(e.due_s - soon, state.work(e) * time_s / most, serial) for serial, e in waiting.items()]
        chosen = in_time(item for item in items if item[0] > 0)
        return [waiting[serial] for _, _, serial in chosen], most, alone

    def _earned_s(self, state: State, now_s: float) -> float:
        """Give the time for which decodes may be stalled now."""
        # The tightest level of those who decode: stalls are felt by all alike.
        own = [e.request.tpot_slo_s for e in state.decoding.values() if e.request.tpot_slo_s is not None]
        pace, tokens = min([self.levels.tpot_slo_s, *own]), state.clock - self._credited_clock
        self._credit_s += EARNED * pace * tokens - (now_s - self._credited_s)
        self._credit_s = max(min(self._credit_s, MOST_CREDIT * pace), -_MOST_DEBT * pace)
        self._credited_s, self._credited_clock = now_s, state.clock
        return self._credit_s

    def _level(self, now_s: float) -> int:
        """Choose the time limit of the step: longer the nearer the oldest wait is to those of the recent past."""
        if self.objective == "throughput":
            return LEVELS
        unseen = self._unseen
        while unseen and _has_begun(unseen[0]):
            unseen.popleft()
        if not unseen:
            return 0
        return round(LEVELS * pressure(now_s - unseen[0].arrival_s, self.usual_wait_s))

    def forget_begun(self, waiting: int) -> None:
        """Drop who is not waited for any more from behind one who is; now and then, for memory's sake."""
        if len(self._unseen) > 1024 + 2 * waiting:
            self._unseen = deque(entry for entry in self._unseen if not _has_begun(entry))

    def wait_for_company(self, state: State, tokens: int, prompts: int) -> bool:
        """Whether prompts that do not fill a step cost the decodes more than it costs them to wait for others.

        The time they have waited for that counts up until it equals what company would save (as long as one skis on
        rented skis that are dear to buy).
        """
        decodes, context = len(state.decoding), state.context_sum
        # By fours: what is remembered of every number of decodes would grow without need.
        excess = self.knobs.price * self._steps.excess_s(tokens, max(1, decodes >> 2 << 2), context)
        if excess > 0:
            self._waited_s += prompts * step_s(self._clock, 0, 0, decodes, context)
            if self._waited_s < excess:
                return True
        self._waited_s = 0.0
        return False

    def exclusive(self, state: State, tokens: int, prefix: int, decodes: int) -> bool:
        """Whether decodes wait in a step with so many prompt tokens."""
        if self.knobs.mode != "auto":
            return self.knobs.mode == "exclusive"
        clock, context = self._clock, state.context_sum + decodes
        apart = step_s(clock, tokens, prefix) + step_s(clock, 0, 0, decodes, context)
        return apart < step_s(clock, tokens, prefix, decodes, context)

    # ---- what is kept

    def to_document(self, state: State) -> dict[str, Any]:
        """Give what it has learned as JSON."""
        return {
            "context": self._context,
            "submitted": self._submitted,
            "waits": self._waits.values(),
            "works": self._works.values(),
            "prefills": self._prefills.values(),
            "exempted": self._exempted,
            "credit": [self._credit_s, self._credited_s, self._credited_clock - state.clock],
            "waited_s": self._waited_s,
            "unseen": [entry.serial for entry in self._unseen if entry.phase != GONE],
        }

    def load(self, document: dict[str, Any], state: State) -> None:
        """Take it up; the requests are there already."""
        self._context, self._submitted = float(document["context"]), int(document["submitted"])
        if self._submitted:
            self._submitted -= 1
            self._learn_context(self._context)
        learned = ((self._waits, "waits"), (self._works, "works"), (self._prefills, "prefills"))
        for recent, name in learned:
            for number in document[name]:
                recent.add(float(number))
        self._exempted = int(document["exempted"])
        self._credit_s, self._credited_s = (float(number) for number in document["credit"][:2])
        self._credited_clock = state.clock + int(document["credit"][2])
        self.usual_wait_s = self._waits.quantile(0.99) or 0.0
        self._waited_s = float(document["waited_s"])
        self._unseen = deque(state.by_serial[serial] for serial in document["unseen"])


def _has_begun(entry: Entry) -> bool:
    """Say whether a request's first token is not waited for: its prompt's last chunk was composed, or it is gone."""
    return entry.phase > PREFILL or entry.known > entry.request.prompt_tokens

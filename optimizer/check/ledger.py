"""Every request followed through its own rows: what it computed, when it was finished, what KV it held.

Rows are taken request by request and in order of time, so that one small state is enough. A row that
contradicts the state is a violation; the state then follows the row, lest one mistake be told again in
every later row.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, NamedTuple

import numpy as np

from optimizer.check.report import Findings, Rule
from optimizer.problem import Instance, Schedule
from optimizer.problem.columns import Ints

_NEVER, _UNKNOWN = -1, -2


class Ledger(NamedTuple):
    """What the rows of all requests add up to.

    An episode is a stay in the KV cache: from an admission to the finish or to a preemption.
    """

    chunk_before: Ints
    """By row of the chunk table: tokens in the cache before it."""
    chunk_after: Ints
    chunk_episode: Ints
    decode_before: Ints
    """By row of the decode table."""
    decode_after: Ints
    """Tokens in the cache after it; those beyond the last output token are left out."""
    decode_episode: Ints
    episode_request: Ints
    episode_first: Ints
    """First run in the cache."""
    episode_last: Ints
    """Last run in the cache."""
    episode_cached: Ints
    """Tokens that a prefix hit gave at the admission."""
    episode_chunk: Ints
    """Row of the chunk table that comes first; -1: there is none."""
    episode_context: Ints
    """Tokens in the cache at the end."""
    first_token_run: Ints
    """By request; in the last step of this run. Negative: none."""
    finish_run: Ints


class _Phase(Enum):
    OUT = 1
    PREFILLING = 2
    DECODING = 3
    DONE = 4


class _Walk:
    """The state of the request that is being followed, and the columns of the ledger."""

    def __init__(self, schedule: Schedule, instance: Instance, decoded: Ints, found: Findings) -> None:
        s, requests = schedule, instance.requests
        self.found, self.preempts = found, instance.engine.preemption != "none"
        self.prompts, self.outputs = requests.prompt_tokens.tolist(), requests.output_tokens.tolist()
        self.steps, self.decoded = s.steps.tolist(), decoded.tolist()
        runs = np.arange(len(s.steps))
        self.active_until = np.maximum.accumulate(np.where(s.decode_seqs > 0, runs, -1)).tolist()
        self.chunk_tokens, self.chunk_context = s.chunk_tokens.tolist(), s.chunk_context.tolist()
        self.cached_tokens = s.cached_tokens.tolist()
        self.chunks = np.zeros((3, len(s.chunk_run)), np.int64)
        self.decodes = np.zeros((3, len(s.decode_request)), np.int64)
        self.episodes: list[list[int]] = []
        self.first_token_run = np.full(len(requests), _NEVER)
        self.finish_run = np.full(len(requests), _NEVER)
        self.seen = np.zeros(len(requests), np.bool_)

    def open(self, request: int) -> None:
        """Start to follow a request."""
        self.request, self.prompt, self.output = request, self.prompts[request], self.outputs[request]
        self.phase, self.context, self.generated, self.target = _Phase.OUT, 0, 0, self.prompt
        self.busy_until, self.busy_decoding = -1, False
        self.seen[request] = True

    def close(self) -> None:
        """The request has no more rows."""
        self._end_episode(self.busy_until)
        if self.generated < self.output and self.finish_run[self.request] == _NEVER:
            self._broken(
                Rule.LOST, f"generates {self.generated:,} of {self.output:,} output tokens", self.busy_until
            )

    def preempt(self, run: int, _last: int, _row: int) -> None:
        if not self.preempts:
            self._broken(Rule.PREEMPTION, "preempted, which the engine does not allow", run)
        if self.phase in (_Phase.OUT, _Phase.DONE):
            state = "has finished" if self.phase is _Phase.DONE else "holds no KV"
            self._broken(Rule.PREEMPTION, f"preempted while it {state}", run)
            return
        if self.busy_until >= run:
            self._broken(
                Rule.PREEMPTION, f"preempted here, but its row goes on to run {self.busy_until}", run
            )
        self._end_episode(run - 1)
        self.phase, self.context, self.busy_until = _Phase.OUT, 0, run - 1

    def cached(self, run: int, _last: int, row: int) -> None:
        if self.phase is not _Phase.OUT:
            self._broken(Rule.PREFIX_HIT, "hits the prefix cache though it is already admitted", run)
            return
        tokens, target = self.cached_tokens[row], self.prompt + self.generated
        if tokens >= target:
            self._broken(
                Rule.PREFIX_HIT,
                f"the hit gives {tokens:,} of {target:,} tokens; at least the last is computed",
                run,
            )
        self._admit(run, min(tokens, target - 1))

    def chunk(self, run: int, _last: int, row: int) -> None:
        tokens, context = self.chunk_tokens[row], self.chunk_context[row]
        if not self._overlaps(run, decoding=False):
            if self.phase is _Phase.OUT:
                self._admit(run)
            elif self.phase is _Phase.DECODING:
                self._broken(Rule.PRECEDENCE, "prefills while it decodes, with no preemption in between", run)
            elif self.phase is _Phase.DONE:
                self._broken(Rule.OVERRUN, f"prefills {tokens:,} tokens after its last output token", run)
        if self.phase is _Phase.DONE:
            self.chunks[:, row] = self.context, self.context, len(self.episodes) - 1
            return
        if self.episodes[-1][4] < 0:
            self.episodes[-1][4] = row
        if context != self.context:
            self._broken(
                Rule.CONTEXT,
                f"the chunk starts after {context:,} tokens; {self.context:,} are computed",
                run,
            )
        after = context + tokens * self.steps[run]
        if after > self.target and self.phase is _Phase.PREFILLING:
            self._broken(
                Rule.PREFILL,
                f"{after:,} tokens are computed; {self.target:,} are there: {self.prompt:,} of the prompt and "
                f"{self.target - self.prompt:,} generated before",
                run,
            )
        after = min(after, self.target)
        self.chunks[:, row] = self.context, after, len(self.episodes) - 1
        self.context = after
        self.busy_until, self.busy_decoding = max(run, self.busy_until), False
        if after == self.target and self.phase is _Phase.PREFILLING:
            self.phase = _Phase.DECODING
            self._generate(1, run)

    def decode(self, first: int, last: int, row: int) -> None:
        steps = self.decoded[last + 1] - self.decoded[first]
        self.decodes[:, row] = self.context, self.context, len(self.episodes) - 1
        if not steps:
            return
        # Behind its last decode there may be runs of the segment in which nobody decoded.
        until = max(first - 1, self.active_until[last])
        if not self._overlaps(first, decoding=True):
            if self.phase is _Phase.DONE:
                self._broken(Rule.OVERRUN, f"decodes {steps:,} more steps after its last output token", first)
            elif self.phase is not _Phase.DECODING:
                self._broken(
                    Rule.PRECEDENCE,
                    f"decodes with {self.context:,} of {self.target:,} tokens of its prefill computed",
                    first,
                )
        if self.phase is _Phase.OUT:
            self._admit(first)
        useful = min(steps, self.output - self.generated)
        self.decodes[:, row] = self.context, self.context + useful, len(self.episodes) - 1
        self.context += useful
        self.busy_until, self.busy_decoding = max(until, self.busy_until), True
        if self.phase is not _Phase.DONE:
            self.phase = _Phase.DECODING
            self._generate(steps, until)

    def _overlaps(self, run: int, *, decoding: bool) -> bool:
        """Whether a row begins where the one before it still computes; that is a violation."""
        if run > self.busy_until:
            return False
        if decoding == self.busy_decoding:
            what = "decodes twice" if decoding else "computes two chunks"
            self._broken(Rule.ONCE, f"{what} in one step", run)
        else:
            self._broken(Rule.PRECEDENCE, "prefills and decodes in one step", run)
        return True

    def _admit(self, run: int, cached: int = 0) -> None:
        self.target = self.prompt + self.generated
        self.episodes.append([self.request, run, run, cached, -1, 0])
        self.phase, self.context = _Phase.PREFILLING, cached

    def _generate(self, tokens: int, run: int) -> None:
        """Count output tokens, the last of them at the end of a run."""
        if not self.generated and tokens:
            self.first_token_run[self.request] = run
        self.generated += tokens
        if self.generated < self.output:
            return
        self.finish_run[self.request] = run
        if self.generated > self.output:
            self._broken(
                Rule.OVERRUN, f"generates {self.generated:,} tokens; it asks for {self.output:,}", run
            )
            self.generated, self.finish_run[self.request] = self.output, _UNKNOWN
        self._end_episode(run)
        self.phase = _Phase.DONE

    def _end_episode(self, run: int) -> None:
        if self.phase in (_Phase.PREFILLING, _Phase.DECODING):
            self.episodes[-1][2] = max(run, self.episodes[-1][1])
            self.episodes[-1][5] = self.context

    def _broken(self, rule: Rule, message: str, run: int) -> None:
        self.found.add(rule, message, run=run, request=self.request)


def follow(schedule: Schedule, instance: Instance, decoded: Ints, found: Findings) -> Ledger:
    """Follow every request; `decoded` counts the decode steps before each run, and in all."""
    s, runs = schedule, len(schedule.steps)
    tables = (
        (s.preempt_request, s.preempt_run, s.preempt_run),
        (s.cached_request, s.cached_run, s.cached_run),
        (s.chunk_request, s.chunk_run, s.chunk_run),
        (s.decode_request, s.decode_first_run, s.decode_last_run),
    )
    sizes = [len(t[0]) for t in tables]
    kind = np.repeat(np.arange(4), sizes)
    row = np.concatenate([np.arange(size) for size in sizes])
    request, first, last = (np.concatenate(column) for column in zip(*tables, strict=True))
    order = np.argsort((request * (runs + 1) + first) * 4 + kind, kind="stable")
    walk = _Walk(schedule, instance, decoded, found)
    take = (walk.preempt, walk.cached, walk.chunk, walk.decode)
    current = -1
    columns = (column[order].tolist() for column in (kind, request, first, last, row))
    for what, who, begins, ends, which in zip(*columns, strict=True):
        if who != current:
            if current >= 0:
                walk.close()
            walk.open(who)
            current = who
        take[what](begins, ends, which)
    if current >= 0:
        walk.close()
    found.add_where(Rule.LOST, ~walk.seen, lambda r: {"request": r, "message": "is never scheduled"})
    request, first, last, cached, chunk, context = np.array(walk.episodes, np.int64).reshape(-1, 6).T
    return Ledger(
        walk.chunks[0], walk.chunks[1], walk.chunks[2],
        walk.decodes[0], walk.decodes[1], walk.decodes[2],
        request, first, last, cached, chunk, context,
        walk.first_token_run, walk.finish_run,
    )  # fmt: skip


def check_outcomes(schedule: Schedule, ledger: Ledger, found: Findings) -> None:
    """Compare `first_token_s` and `finish_s` with the ends of the runs that gave those tokens."""
    for rule, name, run in (
        (Rule.FIRST_TOKEN, "first_token_s", ledger.first_token_run),
        (Rule.FINISH, "finish_s", ledger.finish_run),
    ):
        said = getattr(schedule, name)
        ends = np.append(schedule.end_s, np.nan)[np.maximum(run, _NEVER)]
        same = np.where(np.isnan(ends), np.isnan(said), np.abs(said - ends) <= 1e-9 + 1e-12 * np.abs(ends))

        def tell(
            r: int, name: str = name, said: Any = said, run: Ints = run, ends: Any = ends
        ) -> dict[str, Any]:
            if run[r] < 0:
                return {
                    "request": r,
                    "message": f"{name} is {said[r]!r} s, and nothing in the schedule gives it",
                }
            return {
                "request": r,
                "run": int(run[r]),
                "last_step": True,
                "message": f"{name} is {said[r]:.9f} s; the step ends at {ends[r]:.9f} s",
            }

        found.add_where(rule, ~same & (run != _UNKNOWN), tell)

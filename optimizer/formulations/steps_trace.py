"""A plan walked through in whole numbers: what each request and each step is then, and what it is worth.

The vocabulary of the `steps` model. The walk gives CP-SAT a complete hint, an upper bound on the objective, and with
that a limit on the number of steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from optimizer.errors import InputError
from optimizer.formulations.steps_time import Rates, Regime, WholeStepTime
from optimizer.problem.instance import Instance
from optimizer.problem.plan import PlanStep, StepsPlan
from optimizer.units import moment_ticks

StepsObjective = Literal["makespan", "mean-latency", "weighted-latency", "ttft"]


@dataclass(frozen=True, slots=True)
class Load:
    """What a step computes, in the units of `StepPiece`."""

    prefill_tokens: int
    prefill_attention: int
    prefill_seqs: int
    prefill_context: int
    decode_seqs: int
    decode_context: int

    def regime(self, model: WholeStepTime) -> Regime:
        """Give the regime in which the step lies."""
        tokens = self.prefill_tokens + self.decode_seqs
        phase = "decode" if not self.prefill_tokens else "mixed" if self.decode_seqs else "prefill"
        return next(
            regime
            for regime in model.regimes
            if phase in regime.phases
            and regime.least <= tokens
            and (regime.most is None or tokens <= regime.most)
        )

    def time(self, model: WholeStepTime) -> int:
        """Units that the step takes."""
        return max(self.under(piece) for piece in self.regime(model).pieces)

    def under(self, piece: Rates) -> int:
        """Units by one affine piece."""
        return (
            piece.base
            + piece.prefill_token * self.prefill_tokens
            + piece.prefill_attention * self.prefill_attention
            + piece.prefill_seq * self.prefill_seqs
            + piece.prefill_context * self.prefill_context
            + piece.decode_seq * self.decode_seqs
            + piece.decode_context * self.decode_context
        )


@dataclass(slots=True)
class Standing:
    """How a request stands after a step, and what it did in it; the names are those of the model's variables."""

    chunk: int = 0
    prefills: bool = False
    decodes: bool = False
    thrown_out: bool = False
    keeps: bool = False
    holds: bool = False
    could_decode: bool = False
    ready: bool = False
    samples: bool = False
    lost: int = 0
    context: int = 0
    generated: int = 0
    finished: bool = False

    @property
    def started(self) -> bool:
        """Whether its first token is out."""
        return self.generated > 0

    @property
    def decode_context(self) -> int:
        """Its share of the step's decode context."""
        return self.context if self.decodes else 0

    @property
    def prefill_context(self) -> int:
        """Its share of the step's prefill context."""
        return self.context if self.prefills else 0

    @property
    def prefill_attention(self) -> int:
        """Twice its query-key pairs in the step."""
        return self.chunk * (2 * self.context - self.chunk + 1)


@dataclass(frozen=True, slots=True)
class Trace:
    """A plan, walked through.

    Attributes
    ----------
    standings
        By request, then by step.
    start, end
        By step, in units.
    loads
        By step.
    first_token, finish
        By request, in units.
    """

    standings: tuple[tuple[Standing, ...], ...]
    start: tuple[int, ...]
    end: tuple[int, ...]
    loads: tuple[Load, ...]
    first_token: tuple[int, ...]
    finish: tuple[int, ...]

    def milestones(self, objective: StepsObjective) -> tuple[int, ...]:
        """Give the moments, by request, that the objective is about."""
        return self.first_token if objective == "ttft" else self.finish


def arrivals(instance: Instance, unit_ticks: int) -> list[int]:
    """Give the arrivals in units, rounded down."""
    return [moment_ticks(moment) // unit_ticks for moment in instance.requests.arrival_s.tolist()]


def walk(instance: Instance, plan: StepsPlan, time: WholeStepTime) -> Trace:
    """Walk through a plan that serves every request to its end.

    `not_before_s` of its steps is ignored: nothing but an arrival is worth waiting for.

    Raises
    ------
    InputError
        If a step asks for what cannot be, or requests are left unfinished.
    """
    prompts, outputs = instance.requests.prompt_tokens.tolist(), instance.requests.output_tokens.tolist()
    arrival = arrivals(instance, time.unit_ticks)
    n, now = len(prompts), 0
    before = [Standing() for _ in range(n)]
    rows: list[list[Standing]] = [[] for _ in range(n)]
    start, end, loads = [], [], []
    first, finish = [-1] * n, [-1] * n
    for number, step in enumerate(plan.steps):
        chunks, decoding, out = dict(step.prefill), set(step.decode), set(step.preempt)
        after = [
            _next(before[i], chunks.get(i, 0), i in decoding, i in out, prompts[i], outputs[i])
            for i in range(n)
        ]
        if None in after:
            request = instance.requests.name(after.index(None))
            raise InputError(f"step {number} of the plan asks of request {request} what cannot be")
        stands = [s for s in after if s is not None]
        load = _load(before, stands)
        now = max([now, *(arrival[i] for i in chunks)])
        start.append(now)
        now += load.time(time)
        end.append(now)
        loads.append(load)
        for i, stand in enumerate(stands):
            rows[i].append(stand)
            first[i] = now if first[i] < 0 and stand.generated else first[i]
            finish[i] = now if finish[i] < 0 and stand.finished else finish[i]
        before = stands
    if min(finish) < 0:
        request = instance.requests.name(finish.index(min(finish)))
        raise InputError(f"the plan does not finish request {request}; expected one that finishes all")
    return Trace(tuple(map(tuple, rows)), tuple(start), tuple(end), tuple(loads), tuple(first), tuple(finish))


def _next(was: Standing, chunk: int, decodes: bool, out: bool, prompt: int, output: int) -> Standing | None:
    """Give how a request stands after a step; None if it cannot do that."""
    alive = was.holds and not was.finished
    keeps = alive and not out
    ready = was.ready and keeps
    context = was.context if keeps else 0
    left = prompt + was.generated - context
    if (out and not alive) or (decodes and not ready) or (chunk and (ready or was.finished or chunk > left)):
        return None
    samples = bool(chunk) and chunk == left
    generated = was.generated + decodes + samples
    return Standing(
        chunk=chunk,
        prefills=bool(chunk),
        decodes=decodes,
        thrown_out=out,
        keeps=keeps,
        holds=keeps or bool(chunk),
        could_decode=ready,
        ready=ready or samples,
        samples=samples,
        lost=was.context if out else 0,
        context=context + chunk + decodes,
        generated=generated,
        finished=generated == output,
    )


def idle(was: Standing) -> Standing:
    """Give how a request stands after a step in which nothing happens to it."""
    stand = _next(was, 0, False, False, 0, was.generated + (not was.finished))
    assert stand is not None
    return stand


def _load(before: Sequence[Standing], after: Sequence[Standing]) -> Load:
    chunks = [s for s in after if s.prefills]
    decodes = [s for s in after if s.decodes]
    return Load(
        sum(s.chunk for s in chunks),
        sum(s.chunk * (s.context - s.chunk) + s.chunk * (s.chunk + 1) // 2 for s in chunks),
        len(chunks),
        sum(s.context for s in chunks),
        len(decodes),
        sum(s.context for s in decodes),
    )


def one_after_another(instance: Instance) -> StepsPlan:
    """Serve the requests one at a time, in order of arrival: always possible."""
    budget = instance.engine.max_num_batched_tokens
    steps: list[PlanStep] = []
    lengths = zip(
        instance.requests.prompt_tokens.tolist(), instance.requests.output_tokens.tolist(), strict=True
    )
    for row, (prompt, output) in enumerate(lengths):
        chunks = [budget] * (prompt // budget) + [prompt % budget] * bool(prompt % budget)
        steps += [PlanStep(prefill=((row, chunk),)) for chunk in chunks]
        steps += [PlanStep(decode=(row,))] * (output - 1)
    return StepsPlan(steps=tuple(steps))

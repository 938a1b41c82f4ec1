"""`rolling-horizon` in the simulator: the online loop as it is, on a virtual clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from math import log
from typing import Any, cast, get_args

from optimizer.online.horizon import RollingHorizon
from optimizer.online.knobs import OnlineObjective
from optimizer.online.messages import Request, Step
from optimizer.online.virtual import VirtualPlanner
from optimizer.online.window import Effort, Method
from optimizer.policies.base import Policy, register
from optimizer.problem.engine import Engine
from optimizer.problem.metrics import TPOT_SLO_S, TTFT_SLO_S
from optimizer.simulator.queues import WaitingQueue
from optimizer.simulator.state import EngineState
from optimizer.units import seconds

_NEVER = 1 << 60
_MODEL_S = 0.1
"""Deterministic time of CP-SAT in a solve of fixed effort: twice what it gets."""
_WIDTH = 3.4
"""Of an interval of lengths in standard deviations, as far as it is one."""


class Pool:
    """Waiting requests without an order: the horizon has its own."""

    def __init__(self) -> None:
        self._rows: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        """Go through the requests."""
        return iter(self._rows)

    def push(self, request: int) -> None:
        """Take in an arrival or a preempted request."""
        self._rows[request] = None

    push_back = push

    def head(self) -> int:
        """Show one."""
        return next(iter(self._rows))

    def pop(self) -> int:
        """Take one out."""
        return self.take(self.head())

    def take(self, request: int) -> int:
        """Take a request out."""
        del self._rows[request]
        return request


@register("rolling-horizon")
@dataclass
class RollingHorizonPolicy(Policy):
    """The online loop: memory-safe admission at once, and a solver's plans for the next seconds as late as its solves took.

    It is `optimizer.online.RollingHorizon` as a serving loop calls it; only the solver's process is replaced by one on
    the simulator's clock. Every `every_s` at most, where somebody waits, it is shown the moment; its plan is in force
    `delay_s` later. A solve has a fixed effort, `evaluations` rollouts, so that runs repeat themselves; `delay_s` 0 takes
    the seconds that each solve really took in place of a number, and such runs do not.

    With prefix caching a request is submitted with the tokens that the cache holds of it when it arrives; what it holds when
    the request is admitted is reported. Blocks that requests share are counted for each of them: where memory is scarce
    and long prefixes are shared, fewer run than could, and first come first served is better.

    `solver`: `cp-sat`, `milp` or `search` (what proposes orders beside the simple ones), or `none`: the heuristic alone. The
    other options are those of `RollingHorizon`; `exempt` is set as in `horizon`, with which it is compared.
    """

    objective: OnlineObjective = "latency"
    solver: str = "cp-sat"
    window_s: float = 5.0
    every_s: float = 2.0
    delay_s: float = 1.0
    evaluations: int = 16
    confidence: float = 0.95
    patience_s: float = 48.0
    exempt: float = 0.009
    ttft_slo_s: float = TTFT_SLO_S
    tpot_slo_s: float = TPOT_SLO_S

    asks_always = True

    def __post_init__(self) -> None:
        self.demand("solver", self.solver in ("none", *get_args(Method)), "cp-sat, milp, search or none")
        self.demand("every_s", self.every_s > 0, "seconds > 0")
        self.demand("delay_s", self.delay_s >= 0, "seconds >= 0")
        self.demand("evaluations", self.evaluations >= 1, "a whole number >= 1")

    def queue(self, state: EngineState) -> WaitingQueue:
        """Give a queue without an order."""
        self._pool = Pool()
        return self._pool

    def start(self, state: EngineState) -> None:
        """Start a horizon on the engine."""
        engine = Engine(
            name="simulated",
            kv_blocks=state.blocks,
            block_tokens=state.block_tokens,
            max_num_batched_tokens=state.token_budget,
            max_num_seqs=state.max_num_seqs,
            max_model_len=max(2, state.model_len),
            preemption="recompute" if state.preempts else "none",
            step_time=state.step_time,
        )
        names = ("objective", "window_s", "confidence", "patience_s", "exempt", "ttft_slo_s", "tpot_slo_s")
        solver = None
        if self.solver != "none":
            solver = self._planner(engine, {name: getattr(self, name) for name in names})
        self.horizon = RollingHorizon(
            engine,
            self.objective,
            self.window_s,
            solver=solver,
            max_waiting=_NEVER,
            confidence=self.confidence,
            patience_s=self.patience_s,
            exempt=self.exempt,
            ttft_slo_s=self.ttft_slo_s,
            tpot_slo_s=self.tpot_slo_s,
        )
        self._submitted = 0
        self._finished: list[str] = []
        self._under: deque[Step] = deque()

    def _planner(self, engine: Engine, options: dict[str, Any]) -> VirtualPlanner:
        effort = Effort(_MODEL_S, evaluations=self.evaluations, method=cast("Method", self.solver))
        return VirtualPlanner(
            engine, options, effort, delay_s=self.delay_s or None, every_s=self.every_s, seed=self.seed
        )

    def finished(self, state: EngineState, request: int) -> None:
        """Remember, for the next report."""
        self._finished.append(str(request))

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        s, horizon = state, self.horizon
        for row in range(self._submitted, s.arrived):
            moment = max(seconds(s.arrival[row]), horizon.now_s)
            horizon.submit(self._request(s, row), moment)
        self._submitted = s.arrived
        for row in s.leaving:
            # The engine is not told yet that it ended: its seat and its blocks are taken.
            horizon.loop.state.hold(horizon.loop.state.entries[str(row)], _NEVER)
        self._report(s)
        step = horizon.next_step(s.now_s)
        self._execute(s, step)
        if step:
            self._under.append(step)
        s.hold = 1

    def _report(self, s: EngineState) -> None:
        """Report steps that are done; the last one not before everybody is known who ended with it."""
        while len(self._under) > bool(s.leaving):
            self.horizon.observe(self._under.popleft(), s.now_s, self._finished)
            self._finished = []

    def _request(self, s: EngineState, row: int) -> Request:
        requests = s.requests

        def own(column: object) -> float | None:
            value = None if column is None else float(column[row])  # type: ignore[index]
            return None if value is None or value != value else value

        guess = sigma = None
        if s.estimate is not None and s.low is not None and s.high is not None:
            guess, low, high = s.estimate[row], s.low[row], s.high[row]
            if low > 1 or high < s.cap[row]:
                sigma = max(0.01, log(high / low) / _WIDTH)
        weight = own(requests.weight)
        return Request(
            str(row),
            s.prompt_tokens[row],
            s.cap[row],
            predicted_tokens=guess,
            log_sigma=sigma,
            weight=weight if weight else 1.0,
            ttft_slo_s=own(requests.ttft_slo_s),
            tpot_slo_s=own(requests.tpot_slo_s),
            tenant="" if requests.tenant is None else requests.tenant[row],
            cached_tokens=s.cached_tokens(row),
        )

    def _execute(self, s: EngineState, step: Step) -> None:
        """Do what the step says; prefixes that are in the cache are known now, and not when the step is reported."""
        flights = self.horizon.loop.flights
        for name in step.preempt:
            s.preempt(int(name))
        s.stalled = not step.decode
        if step.decode and s.tight:
            s.take_decode_blocks()
        for name, tokens in step.prefill:
            row, cached = int(name), 0
            admitted = s.cache is not None and row not in s.running
            if row not in s.running:
                cached = s.cached_tokens(row)
                s.admit(self._pool.take(row), cached)
            computed = min(tokens, s.left[row])
            s.schedule(row, computed)
            if admitted:
                flights.correct(flights.all()[-1], name, cached + computed)
        if s.prefilling and step.decode:
            # After a preemption all but the last token may have been in the cache: what is left is a decode to the loop,
            # and a chunk of one token here.
            decodes = set(step.decode)
            for row in list(s.prefilling):
                if s.left[row] == 1 and str(row) in decodes:
                    s.schedule(row, 1)

"""`solve`: the door to offline answers. Heuristics at once, bounds, models where they fit, search until the time is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean as mean
from statistics import stdev

import numpy as np

from optimizer.check import check
from optimizer.errors import InputError, OptimizerError, PolicyError
from optimizer.offline.bounds import LATENCIES, Bound, best_greedy, is_few, work_bound
from optimizer.offline.exact import solve_small
from optimizer.offline.few_rounds import solve_few
from optimizer.offline.heuristics import BASELINE, policies
from optimizer.offline.objective import parse_objective, value_of
from optimizer.offline.result import Limit, Progress, Result
from optimizer.offline.rounds import Rounds, offerer, solve_many
from optimizer.offline.scenarios import scenarios
from optimizer.offline.search import OutOfTime, Value, anneal, sweep
from optimizer.policies.plan import PlanPolicy
from optimizer.problem import Instance, Schedule
from optimizer.problem.gap import gap as gap_of
from optimizer.problem.instance import Objective
from optimizer.problem.plan import OrderPlan, Plan
from optimizer.problem.ramps import equal_round_s
from optimizer.simulator import Simulation, simulate

OnProgress = Callable[[Progress], None]
_POLICIES_PART = 0.6
"""Part of the time that policies may take."""
_SAFE_BASELINE = "fcfs, peak-safe"
_EQUAL = 1e-9
"""Values that differ by less, relatively, are equal: arrivals are whole nanoseconds in a simulation."""


def solve(
    instance: Instance,
    *,
    objective: str | None = None,
    time_limit_s: float = 60.0,
    gap: float = 0.0,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Result:
    """Find a good schedule, and a bound on how good any can be.

    Parameters
    ----------
    instance
        Where it says what is known of output lengths, plans are made with the estimates and then executed with the
        true lengths; where it says nothing, the true lengths are known.
    objective
        One of `makespan`, `mean-latency`, `weighted-latency`, `ttft`, `goodput`, or two with a comma (the second
        decides among equals); the instance's own if None.
    time_limit_s
        Wall time, > 0. Policies are tried even if it is too short for that.
    gap
        End as soon as (primal - dual) / primal is not above this.
    seed
        Of everything drawn. With the same seed a solve makes the same moves; how far it comes depends on the machine.
    on_progress
        Called at every better schedule and better bound. Ctrl-C ends a solve with the best so far.

    Raises
    ------
    InputError
        If the objective or a limit makes no sense, or no policy can serve the instance (the message says which request
        and which resource).

    Examples
    --------
    >>> from optimizer.problem import Engine, Requests, StepTime
    >>> engine = Engine(name="toy", kv_blocks=9, max_num_seqs=1, step_time=StepTime.affine(base_s=1.0))
    >>> requests = Requests.from_columns({"prompt_tokens": [4, 4], "output_tokens": [5, 1]})
    >>> result = solve(Instance("toy", requests, engine), time_limit_s=5)
    >>> result.primal, result.limit  # the short one first: (1 + 6) / 2
    (3.5, 'optimal')
    """
    if not time_limit_s > 0:
        raise InputError(f"{time_limit_s}; expected seconds > 0", field="time_limit_s")
    if not 0 <= gap < 1:
        raise InputError(f"{gap}; expected a share in [0, 1)", field="gap")
    goals = parse_objective(objective or instance.objective)
    return _Solve(instance, goals, time_limit_s, gap, seed, on_progress).run()


@dataclass(frozen=True, slots=True)
class _Candidate:
    value: Value
    chosen: Plan | str
    simulation: Simulation
    """On the first scenario: the truth, where that is known."""
    source: str
    claimed: float | None
    each: list[Value]
    """By scenario."""


class _Solve:
    """One solve under way."""

    def __init__(
        self,
        instance: Instance,
        goals: tuple[Objective, ...],
        time_limit_s: float,
        gap: float,
        seed: int,
        on_progress: OnProgress | None,
    ) -> None:
        self.instance, self.goals, self.time_limit_s = instance, goals, time_limit_s
        self.gap, self.seed, self.on_progress = gap, seed, on_progress
        self.scenarios = scenarios(instance, seed)
        self.view = self.scenarios[0]
        self.at_truth = np.array_equal(self.view.requests.output_tokens, instance.requests.output_tokens)
        self.start = time.monotonic()
        self.best: _Candidate | None = None
        self.bound: Bound | None = None
        self.certified: Bound | None = None
        self.progress: list[Progress] = []
        self.by_policy: dict[str, Value] = {}

    def run(self) -> Result:
        limit: Limit = "exhausted"
        try:
            limit = self._phases()
        except KeyboardInterrupt:
            limit = "interrupted"
            if self.best is None:
                raise
        return self._result(limit)

    # ---- phases

    def _phases(self) -> Limit:
        self._try_policies()
        self._try_bound()
        try:
            if self.done():
                return self._why_done()
            if self.at_truth:
                solve_small(self)
            if self.done():
                return self._why_done()
            round_s = equal_round_s(self.view) if self.at_truth else None
            if round_s is not None and self.goals[0] in LATENCIES:
                self._in_rounds(round_s)
            else:
                self._search()
        except OutOfTime:
            pass
        return self._why_done()

    def _in_rounds(self, round_s: float) -> None:
        rounds = Rounds.of(self.view, round_s, weighted=self.goals[0] == "weighted-latency")
        start, offer = best_greedy(rounds.ramps), offerer(self, rounds)
        if not offer(start, "greedy"):
            (solve_few if is_few(rounds.ramps, start) else solve_many)(self, rounds, start, offer)

    def _try_policies(self) -> None:
        trouble: OptimizerError | None = None
        for name in policies(self.instance):
            if self.best is not None and self.left_s < (1 - _POLICIES_PART) * self.time_limit_s:
                break
            try:
                self._offer(name, name)
            except PolicyError as error:
                trouble = trouble or error
        if BASELINE not in self.by_policy:
            # Where nobody may be thrown out, first come first served has to look ahead.
            self.offer_plan(self._first_come(), _SAFE_BASELINE)
        if self.best is None:
            raise InputError(f"no policy can serve {self.instance.name}: {trouble}")

    def _try_bound(self) -> None:
        bound = work_bound(self.instance, self.goals[0])
        if bound is not None:
            self.offer_bound(bound)

    def _search(self) -> None:
        found = sweep(self._evaluate, self.view, self.seed)
        if found is None or self.done():
            return
        plan, value = found
        begun = self.left_s

        def over() -> float:
            return 1 - self.left_s / begun

        anneal(self._evaluate, plan, value, over, self.seed)
        raise OutOfTime

    def _evaluate(self, plan: OrderPlan) -> Value | None:
        if self.left_s <= 0 or self.done():
            raise OutOfTime
        return self.offer_plan(plan, "search")

    # ---- what is found

    @property
    def left_s(self) -> float:
        """Seconds left."""
        return self.start + self.time_limit_s - time.monotonic()

    def best_schedule(self) -> Schedule:
        """The best schedule so far; there is one once policies were tried."""
        assert self.best is not None
        return self.best.simulation.schedule

    def offer_plan(self, plan: Plan, source: str, claimed: float | None = None) -> Value | None:
        """Execute a plan; keep it if it is the best so far. None if it cannot be executed."""
        try:
            return self._offer(plan, source, claimed)
        except PolicyError:
            return None

    def _offer(self, chosen: Plan | str, source: str, claimed: float | None = None) -> Value:
        simulations = [self._execute(chosen, scenario) for scenario in self.scenarios]
        each = [
            tuple(value_of(s.metrics, s.instance.requests, goal) for goal in self.goals) for s in simulations
        ]
        value = tuple(map(mean, zip(*each, strict=True)))
        if isinstance(chosen, str) or source == _SAFE_BASELINE:
            self.by_policy[source] = value
        if self.best is None or _less(self._doubted(value, each), self.best.value):
            self.best = _Candidate(value, chosen, simulations[0], source, claimed, each)
            self._tell(source)
            return value
        return self._doubted(value, each)

    def _doubted(self, value: Value, each: list[Value]) -> Value:
        """Give a value with what a few scenarios leave open, so that luck with them is not taken for a better plan.

        Twice the standard error of the difference to the best plan, scenario by scenario.
        """
        if self.best is None or len(each) == 1:
            return value
        apart = [own[0] - best[0] for own, best in zip(each, self.best.each, strict=True)]
        return (value[0] + 2 * stdev(apart) / len(apart) ** 0.5, *value[1:])

    def _execute(self, chosen: Plan | str, instance: Instance) -> Simulation:
        # A policy keeps notes of a run: each run has one of its own.
        return simulate(instance, chosen if isinstance(chosen, str) else PlanPolicy(chosen), seed=self.seed)

    def _first_come(self) -> OrderPlan:
        return OrderPlan(order=tuple(range(len(self.instance.requests))), memory="peak-safe")

    def offer_bound(self, bound: Bound) -> None:
        """Keep a bound if it is the best so far."""
        if bound.certificate is not None and (self.certified is None or bound.value > self.certified.value):
            self.certified = bound
        # A solver's word for the same value does not replace a certificate.
        if self.bound is None or bound.value > self.bound.value + _EQUAL * abs(self.bound.value):
            self.bound = bound
            self._tell(bound.by)

    def _tell(self, source: str) -> None:
        now = time.monotonic() - self.start
        primal = None if self.best is None else self.best.value[0]
        # What is planned with guessed lengths may be below what the true ones allow.
        dual = self.bound.value if self.bound is not None and self.at_truth else None
        step = Progress(now, primal, dual, source)
        self.progress.append(step)
        if self.on_progress is not None:
            self.on_progress(step)

    def _gap(self) -> float | None:
        if self.best is None or self.bound is None or not self.at_truth:
            return None
        primal, dual = self.best.value[0], self.bound.value
        return 0.0 if dual >= primal * (1 - _EQUAL) else gap_of(primal, dual)

    def done(self) -> bool:
        """Whether the wanted gap is reached."""
        found = self._gap()
        # With a second objective there is something to win among optima of the first.
        return found is not None and found <= self.gap and (len(self.goals) == 1 or found > 0)

    def _why_done(self) -> Limit:
        found = self._gap()
        if found is not None and found <= 0:
            return "optimal"
        if found is not None and found <= self.gap:
            return "gap"
        return "time" if self.left_s <= 0 else "exhausted"

    # ---- the end

    def _result(self, limit: Limit) -> Result:
        best = self.best
        assert best is not None
        simulation, claimed = best.simulation, best.claimed
        if not self.at_truth:
            best, simulation = self._at_the_truth(best)
            claimed = best.value[0]
        report = check(simulation.schedule, self.instance)
        values = [value_of(simulation.metrics, self.instance.requests, goal) for goal in self.goals]
        dual, certified = (
            None if b is None else values[0] if b.value >= values[0] * (1 - _EQUAL) else b.value
            for b in (self.bound, self.certified)
        )
        names = [name for name in (BASELINE, _SAFE_BASELINE) if name in self.by_policy]
        baseline = (names or list(self.by_policy))[0]
        heuristic = min(self.by_policy, key=lambda name: self.by_policy[name])
        return Result(
            instance=self.instance,
            objective=",".join(self.goals),
            primal=values[0],
            second=values[1] if len(values) > 1 else None,
            dual=dual,
            plan=None if isinstance(best.chosen, str) else best.chosen,
            simulation=simulation,
            check=report,
            found_by=best.source,
            bound_by=None if self.bound is None else self.bound.by,
            certified=certified,
            certificate=None if self.certified is None else self.certified.certificate,
            baseline=self.by_policy[baseline][0] if self.at_truth else self._true_value(baseline),
            baseline_policy=baseline,
            heuristic=self.by_policy[heuristic][0] if self.at_truth else self._true_value(heuristic),
            heuristic_policy=heuristic,
            limit="optimal" if limit == "exhausted" and self._gap() == 0 else limit,
            progress=tuple(self.progress),
            claimed=claimed,
            seconds=time.monotonic() - self.start,
            seed=self.seed,
            time_limit_s=self.time_limit_s,
        )

    def _at_the_truth(self, best: _Candidate) -> tuple[_Candidate, Simulation]:
        """Execute what was chosen by what was known with the true lengths; where they forbid it, the next best."""
        spares = sorted(self.by_policy, key=lambda name: self.by_policy[name])
        for candidate in (
            best,
            *(
                _Candidate(self.by_policy[n], self._named(n), best.simulation, n, None, best.each)
                for n in spares
            ),
        ):
            try:
                return candidate, self._execute(candidate.chosen, self.instance)
            except PolicyError as error:
                trouble = error
        raise trouble

    def _named(self, policy: str) -> Plan | str:
        return self._first_come() if policy == _SAFE_BASELINE else policy

    def _true_value(self, policy: str) -> float:
        simulation = self._execute(self._named(policy), self.instance)
        return value_of(simulation.metrics, self.instance.requests, self.goals[0])


def _less(value: Value, other: Value) -> bool:
    """Compare lexicographically, with values that are all but equal taken as equal."""
    for a, b in zip(value, other, strict=True):
        if abs(a - b) > _EQUAL * max(abs(a), abs(b)):
            return a < b
    return False

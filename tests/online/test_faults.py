"""Random sequences of calls and faults: no request is lost, no KV block leaked, no step infeasible."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from optimizer.online import Request, RollingHorizon, Step
from optimizer.online.knobs import Knobs
from optimizer.online.plan import WindowPlan
from optimizer.online.stats import SolverStats
from tests.online.double import EngineDouble, books_balance, toy_engine


class DrawnPlanner:
    """Hands back whatever plan the test puts here."""

    def __init__(self):
        self.plan = None
        self.seen = None

    def wants(self, now_s):
        return True

    def post(self, snapshot, now_s):
        self.seen = snapshot

    def poll(self, now_s):
        plan, self.plan = self.plan, None
        return plan

    def stats(self):
        return SolverStats()

    def close(self):
        pass


class Under:
    """A step under way: what the engine will say of it."""

    def __init__(self, step):
        self.step = step
        self.finished = []
        self.tokens = {}
        self.short = set()
        self.behind = set()

    def parts(self):
        return dict(self.step.prefill) | dict.fromkeys(self.step.decode, 1)

    def follows(self, name, how):
        """A step before this one fell short for a request, which is not reported yet; give how that goes on.

        What the step was to compute on top of it cannot be done (`void`). If the request is thrown out it starts anew, and
        has fewer tokens than planned (`behind`).
        """
        if name in self.step.preempt:
            how = "behind"
        if name in self.parts():
            if how == "void":
                self.tokens[name] = 0
            else:
                self.behind.add(name)
        return how


class Faults(RuleBasedStateMachine):
    """The engine runs behind the horizon by up to three steps; reports come late, twice, out of order, or never."""

    @initialize(
        blocks=st.integers(6, 40),
        block_tokens=st.sampled_from([1, 4, 16]),
        seats=st.integers(1, 6),
        budget=st.integers(6, 40),
        objective=st.sampled_from(["latency", "throughput", "goodput", "fair"]),
        preemption=st.sampled_from(["recompute", "recompute", "none"]),
    )
    def start(self, blocks, block_tokens, seats, budget, objective, preemption):
        engine = toy_engine(
            kv_blocks=blocks,
            block_tokens=block_tokens,
            max_num_seqs=seats,
            max_num_batched_tokens=budget,
            preemption=preemption,
        )
        self.planner = DrawnPlanner()
        self.horizon = RollingHorizon(engine, objective, window_s=1.0, solver=self.planner, max_waiting=12)
        self.double = EngineDouble(engine)
        self.now = 0.0
        self.truth = {}
        self.alive = set()
        self.under = []
        """Steps composed and not executed."""
        self.reports = []
        """Steps executed and not reported."""
        self.late = []
        self.fell = {}
        """Requests of which less was computed than planned, which is not reported yet."""
        self.names = 0

    # ---- the caller

    @rule(
        prompt=st.integers(1, 60),
        cap=st.none() | st.integers(1, 40),
        wants=st.integers(1, 60),
        guess=st.none() | st.floats(0, 1e4),
        again=st.booleans(),
        tenant=st.sampled_from(["", "x", "y"]),
        slo=st.none() | st.floats(0.001, 2.0),
        believed=st.just(0) | st.integers(0, 60),
        found=st.floats(0, 1) | st.just(1.0),
    )
    def submit(self, prompt, cap, wants, guess, again, tenant, slo, believed, found):
        name = f"r{self.names - 1 if again and self.names else self.names}"
        self.names += not (again and self.names)
        request = Request(
            name, prompt, cap, predicted_tokens=guess, tenant=tenant, ttft_slo_s=slo, log_sigma=0.5,
            cached_tokens=believed,
        )  # fmt: skip
        admission = self.horizon.submit(request, self.now)
        if name in self.alive:
            assert admission.reason == "duplicate"
            return
        if admission.status == "rejected":
            assert admission.reason in ("too-long", "overload", "slo")
            assert (admission.reason == "too-long") == (
                prompt > self.horizon.engine.kv_tokens or prompt >= 10**9
            ) or admission.reason != "too-long"
            return
        assert admission.max_output_tokens >= 1
        self.alive.add(name)
        self.truth[name] = min(wants, admission.max_output_tokens)
        self.double.add(name, prompt, believed, int(found * min(believed, prompt - 1)))

    @rule()
    def step(self):
        if len(self.under) < 3:
            step = self.horizon.next_step(self.now)
            if step:
                self.under.append(Under(step))
                for name in self.fell:
                    self.fell[name] = self.under[-1].follows(name, self.fell[name])

    @precondition(lambda self: self.under)
    @rule(data=st.data())
    def execute(self, data):
        """The engine does the next step, or less of it."""
        flight = self.under.pop(0)
        short = {}
        parts = flight.parts()
        skip = {n for n in parts if n in flight.tokens or not self._same(flight, n)}
        free = sorted(parts.keys() - skip - flight.behind)
        if free and data.draw(st.integers(0, 5)) == 0:
            name = data.draw(st.sampled_from(free))
            short[name] = data.draw(st.integers(0, parts[name] - 1))
        more = not short and not self.under and not self.reports and free and data.draw(st.booleans())
        if more:
            name = data.draw(st.sampled_from(free))
            short[name] = self._more_than_planned(flight, name)
        self.double.execute(flight.step, short, skip, flight.behind)
        self._note(flight)
        for name in list(self.double.sequences):
            if name in self.truth and self.double.generated(name) >= self.truth[name]:
                # It ends of itself: the engine frees it and says so.
                self.double.drop(name)
                flight.finished.append(name)
        self.reports.append(flight)
        if more:  # the next step is composed from what the engine really did
            self.reports.pop()
            self._deliver(flight)

    def _note(self, flight):
        """Remember what was not as planned until it is reported, and what follows for the steps under way."""
        flight.tokens.update(self.double.differs)
        for name in sorted(self.double.fell_short):
            flight.short.add(name)
            how = "void"
            for later in self.under:
                how = later.follows(name, how)
            self.fell[name] = how

    def _more_than_planned(self, flight, name):
        """A prompt whose middle was cached: all of it is computed, if there is room."""
        s, b = self.double.sequences[name], self.double.engine.block_tokens
        planned = flight.parts()[name]
        believed = sum(s.believed for s in self.double.sequences.values())
        need = -(-(s.tokens + believed) // b) + sum(-(-n // b) + 2 for n in flight.parts().values())
        if name in flight.step.decode or self.double.used() + need > self.double.engine.kv_blocks:
            return planned
        return s.tokens - (s.kv or s.cached)

    def _same(self, flight, name):
        """Whether the request that the step knew by this name is the one of now."""
        entry = self.horizon.loop.state.entries.get(name)
        return name in self.double.sequences and entry is not None and entry.born <= flight.step.number

    @precondition(lambda self: self.reports)
    @rule(data=st.data(), dt=st.floats(0, 0.1))
    def report(self, data, dt):
        """Mostly in order."""
        place = 0 if data.draw(st.integers(0, 3)) else data.draw(st.integers(0, len(self.reports) - 1))
        flight = self.reports.pop(place)
        self.now += dt
        self._deliver(flight)
        if data.draw(st.integers(0, 4)) == 0:
            assert self.horizon.observe(flight.step, self.now, flight.finished) == ()

    def _deliver(self, flight):
        for name in flight.short:
            self.fell.pop(name, None)
        late, self.late = self.late, []
        finished = [*flight.finished, *late]
        still = [n for n in finished if n in self.horizon.loop.state.entries and self._born(flight, n)]
        done = self.horizon.observe(flight.step, self.now, finished, flight.tokens)
        assert set(still) <= set(done)
        assert set(done) <= self.alive
        self.alive -= set(done)
        for name in done:
            self.double.drop(name)

    def _born(self, flight, name):
        return self.horizon.loop.state.entries[name].born <= flight.step.number

    @precondition(lambda self: self.reports)
    @rule()
    def lose(self):
        """A report that says nothing but that the step was done is lost; who ended is told with a later one."""
        if not self.reports[0].tokens:
            self.late += self.reports.pop(0).finished

    @precondition(lambda self: self.horizon.loop.state.entries)
    @rule(data=st.data())
    def cancel(self, data):
        name = data.draw(st.sampled_from(sorted(self.horizon.loop.state.entries)))
        assert self.horizon.cancel(name)
        assert not self.horizon.cancel(name)
        self.alive.discard(name)
        self.double.drop(name)

    @rule(jump=st.sampled_from([-5.0, 0.3, 3600.0, float("nan"), float("-inf")]))
    def clock_jumps(self, jump):
        if jump != jump or jump < 0:
            assert self.horizon.observe(Step(10**6, 0.0, decode=("r0",)), self.now + jump) == ()
        else:
            self.now += jump

    @rule()
    def unknown(self):
        assert not self.horizon.cancel("nobody")

    # ---- the solver and the rule

    @rule(
        order=st.permutations(range(14)),
        price=st.floats(0, 5),
        chunk=st.none() | st.integers(1, 50),
        mode=st.sampled_from(["auto", "mixed", "exclusive"]),
        age=st.floats(-1, 3),
    )
    def plan(self, order, price, chunk, mode, age):
        self.planner.plan = WindowPlan(
            tuple(order),
            (0.0,) * len(order),
            Knobs(price, chunk, mode),
            self.now - age,
            1.0,
            1.0,
            0.1,
            "drawn",
        )

    @rule(what=st.sampled_from(["prompt_tokens", "enter", "seats", "begun"]), broken=st.booleans())
    def rule_breaks(self, what, broken):
        def breaks(*arguments):
            raise RuntimeError("broken")

        self.horizon.loop.rule.__dict__.pop(what, None)
        if broken:
            setattr(self.horizon.loop.rule, what, breaks)

    @rule()
    def save_and_restore(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "horizon.json"
            self.horizon.save(path)
            self.horizon = RollingHorizon.restore(path, solver=self.planner)

    # ---- what must hold

    @invariant()
    def books(self):
        if hasattr(self, "horizon"):
            books_balance(self.horizon)
            assert set(self.horizon.loop.state.entries) == self.alive - set(self.horizon.loop.settled)
            counts = self.horizon.stats().counts
            assert self.horizon.engine.preemption != "none" or not counts.preemptions
            gone = counts.finished + counts.cancelled + sum(counts.rejected.values())
            assert counts.submitted - gone == len(self.horizon.loop.state.entries)

    def teardown(self):
        """Nobody is lost: with no more faults everybody ends, and nothing is held."""
        if not hasattr(self, "horizon"):
            return
        for what in ("prompt_tokens", "enter", "seats", "begun"):
            self.horizon.loop.rule.__dict__.pop(what, None)
        for flight in self.reports:
            self._deliver(flight)
        self.reports = []
        idle = 0
        for _ in range(20_000):
            if not self.under:
                step = self.horizon.next_step(self.now)
                if not step:
                    self.now += 2.0
                    idle += 1
                    if not self.horizon.loop.state.entries:
                        break
                    assert idle < 200, "everybody waits for nothing"
                    continue
                self.under.append(Under(step))
            idle = 0
            self._finish_one()
        assert not self.horizon.loop.state.entries
        assert self.horizon.loop.state.used_blocks == 0
        assert self.double.used() == 0
        self.horizon.close()

    def _finish_one(self):
        flight = self.under.pop(0)
        skip = {n for n in flight.parts() if n in flight.tokens or not self._same(flight, n)}
        self.double.execute(flight.step, {}, skip, flight.behind)
        self._note(flight)
        for name in list(self.double.sequences):
            if self.double.generated(name) >= self.truth[name] and name in self.horizon.loop.state.entries:
                self.double.drop(name)
                flight.finished.append(name)
        self._deliver(flight)


TestFaults = Faults.TestCase
TestFaults.settings = settings(
    max_examples=int(os.environ.get("FAULTS", "60")),
    stateful_step_count=60,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)

"""The plan in force: taken from the solver, judged, followed while it is fresh and a while longer, and dropped."""

from __future__ import annotations

from optimizer.online.knobs import Knobs
from optimizer.online.line import Order
from optimizer.online.messages import Source
from optimizer.online.plan import Planner, WindowPlan
from optimizer.online.rule import Rule
from optimizer.online.snapshot import Arrivals, snapshot
from optimizer.online.state import WAITING, State
from optimizer.online.stats import Counts

_STEPS_BETWEEN = 16
"""Steps from one window to the next: in fewer hardly anything has changed."""


class Advice:
    """Stands between a planner and the loop.

    Parameters
    ----------
    planner
        Who makes plans; None: nobody.
    window_s
        A plan is fresh for so long, and stale for as long again.
    state, order, rule
        What plans are made of, and what they change.
    counts
        Where plans and errors are counted.
    """

    def __init__(
        self,
        planner: Planner | None,
        window_s: float,
        state: State,
        order: Order,
        rule: Rule,
        counts: Counts,
    ) -> None:
        self.planner, self.counts = planner, counts
        self.arrivals = Arrivals()
        self._window_s = window_s
        self._state, self._order, self._rule = state, order, rule
        self._plan: WindowPlan | None = None
        self._next_number = 0

    def consult(self, now_s: float, factor: float) -> Source:
        """Take a plan that is ready, hand a window over where that is wanted, and say what decides now."""
        if self.planner is None:
            return "heuristic"
        try:
            self._exchange(self.planner, now_s, factor)
        except Exception:
            self.counts.planner_errors += 1
        current = self._plan
        if current is None:
            return "heuristic"
        age = now_s - current.made_s
        if age <= self._window_s:
            return "plan"
        if age <= 2 * self._window_s:
            return "stale-plan"
        self._plan, self._rule.knobs = None, Knobs()
        self._order.drop()
        return "heuristic"

    def _exchange(self, planner: Planner, now_s: float, factor: float) -> None:
        plan = planner.poll(now_s)
        if plan is not None:
            self._adopt(plan, now_s)
            return  # one thing per step
        # Where not even two wait there is little to decide that the rule does not know.
        due = self._state.number >= self._next_number and self._state.waiting > 1
        if due and planner.wants(now_s):
            self._next_number = self._state.number + _STEPS_BETWEEN
            seen = snapshot(self._state, self._order, self._rule, self.arrivals, now_s, factor, self._plan)
            planner.post(seen, now_s)

    def _adopt(self, plan: WindowPlan, now_s: float) -> None:
        """Make a plan the one that decides, less those that are gone; refuse one that is not of this time."""
        s, counts = self._state, self.counts
        of_this_time = now_s - 2 * self._window_s <= plan.made_s <= now_s
        if not of_this_time or any(serial >= s.serials for serial in plan.order):
            counts.plans_refused += 1
            return
        entries = [s.by_serial[serial] for serial in plan.order if serial in s.by_serial]
        still = [entry for entry in entries if entry.phase == WAITING]
        counts.plans += 1
        counts.plans_repaired += len(still) < len(plan.order)
        self._plan, self._rule.knobs = plan, plan.knobs
        self._order.adopt(still)

"""A planner on a virtual clock: its plans come as late as their solves took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optimizer.online.plan import Snapshot, WindowPlan
from optimizer.online.stats import Mean, SolverStats
from optimizer.online.window import Effort, solve
from optimizer.problem.engine import Engine


class VirtualPlanner:
    """Solves where it is called, and hands the plan out once the virtual clock has gone on by as much.

    Parameters
    ----------
    engine, options
        As the horizon's.
    effort
        How hard to try; with `evaluations` runs repeat themselves if `delay_s` is given as well.
    delay_s
        Virtual seconds that a solve takes; None: the seconds that it really took.
    every_s
        A window is wanted so often at most.
    seed
        Of all draws.
    """

    def __init__(
        self,
        engine: Engine,
        options: Mapping[str, Any],
        effort: Effort,
        *,
        delay_s: float | None = None,
        every_s: float = 0.5,
        seed: int = 0,
    ) -> None:
        self._engine, self._options, self._effort = engine, dict(options), effort
        self._delay_s, self._every_s, self._seed = delay_s, every_s, seed
        self._next_s = 0.0
        self._ready: tuple[float, WindowPlan] | None = None
        self._solves = self._answers = 0
        self._took = Mean()

    def wants(self, now_s: float) -> bool:
        """Say whether it is idle, and the last window is some time ago."""
        return self._ready is None and now_s >= self._next_s

    def post(self, snapshot: Snapshot, now_s: float) -> None:
        """Solve; nobody learns of it before its time."""
        plan = solve(snapshot, self._engine, self._options, self._effort, self._seed + self._solves)
        self._solves += 1
        self._took.add(plan.seconds)
        delay = plan.seconds if self._delay_s is None else self._delay_s
        self._ready = (now_s + delay, plan)
        self._next_s = now_s + max(delay, self._every_s)

    def poll(self, now_s: float) -> WindowPlan | None:
        """Give the plan once its solve is over on the virtual clock."""
        if self._ready is None or now_s < self._ready[0]:
            return None
        plan, self._ready = self._ready[1], None
        self._answers += 1
        return plan

    def stats(self) -> SolverStats:
        """Say how it fares."""
        state = "idle" if self._ready is None else "solving"
        return SolverStats(state, self._solves, self._answers, mean_s=self._took.value)

    def close(self) -> None:
        """Nothing runs."""

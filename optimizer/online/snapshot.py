"""What the solver is shown of a moment: who runs, who is next, and the plan in force, as plain numbers."""

from __future__ import annotations

from collections import deque
from operator import attrgetter
from typing import Any

from optimizer.online.line import Order
from optimizer.online.plan import MOST_PLANNED, Snapshot, WindowPlan
from optimizer.online.rule import Rule
from optimizer.online.state import Entry, State

_REMEMBERED = 32

COLUMNS = {
    "serial": "serial",
    "phase": "phase",
    "known": "known",
    "computed": "computed",
    "cap": "cap",
    "mu": "mu",
    "sigma": "sigma",
    "most": "most",
    "key": "key",
    "arrival_s": "arrival_s",
    "due_s": "due_s",
    "life": "life",
    "prompt": "request.prompt_tokens",
    "cached": "cached",
    "weight": "request.weight",
    "tpot_slo_s": "request.tpot_slo_s",
}
"""By name, where an `Entry` has it."""

# A few hundred requests are written down between two steps: in one go, and what can be worked out later is.
_values = attrgetter(*COLUMNS.values())


class Arrivals:
    """The last requests that came: what the next ones may be like, and how soon."""

    def __init__(self) -> None:
        self._last: deque[Entry] = deque(maxlen=_REMEMBERED)

    def add(self, entry: Entry) -> None:
        """Take one in."""
        self._last.append(entry)

    def rate(self, now_s: float) -> float:
        """Give how many come per second, of late."""
        if not self._last:
            return 0.0
        # Those that come all at once say nothing of the next second.
        return len(self._last) / max(now_s - self._last[0].arrival_s, 1.0)

    def rows(self) -> list[Any]:
        """Give them, as rows of `COLUMNS`."""
        return list(map(_values, self._last))


def snapshot(
    state: State,
    order: Order,
    rule: Rule,
    arrivals: Arrivals,
    now_s: float,
    factor: float,
    plan: WindowPlan | None,
) -> Snapshot:
    """Write a moment down.

    Parameters
    ----------
    factor
        How much longer steps take than the engine's card says.

    Returns
    -------
    dict
        `running`, `waiting` and `recent` are rows of `COLUMNS`, as an `Entry` has them; of those that wait, the next
        `MOST_PLANNED` in line, and `hidden` is how many there are behind them.
    """
    waiting = list(map(_values, order.line.first(MOST_PLANNED)))
    return {
        "now_s": now_s,
        "factor": factor,
        "clock": state.clock,
        "running": list(map(_values, state.running())),
        "waiting": waiting,
        "hidden": state.waiting - len(waiting),
        "recent": arrivals.rows(),
        "rate": arrivals.rate(now_s),
        "plan": [] if plan is None else list(plan.order),
        "knobs": [rule.knobs.price, rule.knobs.chunk_tokens, rule.knobs.mode],
        "batch": rule.batch,
        "usual_wait_s": rule.usual_wait_s,
    }

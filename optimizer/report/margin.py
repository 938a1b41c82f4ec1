"""The margin to saturation by simulation: the same requests, faster and faster."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

from optimizer.problem import Instance
from optimizer.report.saturation import saturation
from optimizer.traces import scale_time

if TYPE_CHECKING:
    from optimizer.policies import Policy
    from optimizer.simulator import Simulation

TOLERANCE = 1.05
"""Between the highest rate without saturation and the lowest with it."""
WIDEST = 64.0


def simulated_margin(simulation: Simulation, *, policy: Policy | None = None) -> dict[str, Any]:
    """Find by bisection how many times higher the rate of arrivals could be until the engine saturates.

    All arrivals are moved together or apart on the time axis (`scale_time`), and the run is simulated and judged
    by `saturation` again, some six to ten times. Between the factors given the engine saturates, if more load
    never makes it less saturated. With n arrivals an overload shows from about 3 / sqrt(n) on (see
    `optimizer.report.saturation`): the margin of a short trace comes out so much too high.

    Parameters
    ----------
    simulation
        What `simulate` gave.
    policy
        A fresh one, where the simulation was given a ready policy; else it is made again by its name.

    Returns
    -------
    dict
        `saturation` of the run, with `margin`, `margin_by` "simulated", `margin_between` (the highest factor found
        without saturation and the lowest with it, 5 % apart; None: none up to 64 times the rate, or down to 1/64)
        and `margin_simulations`. As it was, if nothing can be said of a rate.
    """
    from optimizer.simulator import simulate

    s, instance = simulation, simulation.instance
    said = saturation(s.schedule, instance.requests, instance.engine)
    if said["label"] not in ("saturated", "not saturated"):
        return said
    made = 0

    def saturates(factor: float) -> bool:
        nonlocal made
        made += 1
        requests = scale_time(instance.requests, 1 / factor)
        again = simulate(
            Instance(instance.name, requests, instance.engine, instance.objective, instance.source),
            s.policy if policy is None else copy.deepcopy(policy),
            seed=s.seed,
            options=s.options if policy is None else None,
        )
        return bool(saturation(again.schedule, requests, instance.engine)["label"] == "saturated")

    # The run itself is one end; from there towards the estimate, and on in growing strides.
    up = said["label"] != "saturated"
    low, high = (1.0, None) if up else (None, 1.0)
    guess, stride = float(said["margin"] or TOLERANCE), 1.3
    factor = min(max(guess, TOLERANCE), WIDEST) if up else max(min(guess, 1 / TOLERANCE), 1 / WIDEST)
    while low is None or high is None:
        if saturates(factor):
            high = factor
        else:
            low = factor
        if (factor >= WIDEST and high is None) or (factor <= 1 / WIDEST and low is None):
            break
        factor = min(factor * stride, WIDEST) if up else max(factor / stride, 1 / WIDEST)
        stride *= stride
    while low is not None and high is not None and high / low > TOLERANCE:
        middle = math.sqrt(low * high)
        if saturates(middle):
            high = middle
        else:
            low = middle
    between = [None if x is None else round(x, 4) for x in (low, high)]
    return said | {
        "margin": between[0],
        "margin_by": "simulated",
        "margin_between": between,
        "margin_simulations": made,
    }

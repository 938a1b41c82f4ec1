"""What counts as good, as a number to be made small: one definition for search, bounds and reports."""

from __future__ import annotations

from typing import get_args

import numpy as np

from optimizer.errors import InputError
from optimizer.problem import Metrics, Requests
from optimizer.problem.instance import Objective

UNITS = {
    "makespan": "s",
    "mean-latency": "s",
    "weighted-latency": "s",
    "ttft": "s",
    "goodput": "of all requests miss their levels",
}
"""What the value of each objective is measured in."""


def parse_objective(text: str) -> tuple[Objective, ...]:
    """Read one objective, or two with a comma: the second decides among equals of the first.

    Raises
    ------
    InputError
        If a name is unknown, or there are more than two, or the same twice.

    Examples
    --------
    >>> parse_objective("makespan,mean-latency")
    ('makespan', 'mean-latency')
    """
    known: dict[str, Objective] = {name: name for name in get_args(Objective)}
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in known:
            raise InputError(
                f"{name!r} is no objective; expected one of {', '.join(known)}", field="objective"
            )
    if len(names) > 2 or len(set(names)) != len(names):
        raise InputError(
            f"{text!r}; expected one objective, or two different ones with a comma", field="objective"
        )
    return tuple(known[name] for name in names)


def value_of(metrics: Metrics, requests: Requests, objective: Objective) -> float:
    """Give the value of an objective; smaller is better.

    Parameters
    ----------
    metrics
        Of a schedule in which every request finished.
    requests
        For weights.
    objective
        `makespan`: time 0 to the last finish. `mean-latency`, `ttft`: means over requests. `weighted-latency`: by
        weight, per unit of weight. `goodput`: the share of requests that miss a level of theirs.

    Examples
    --------
    >>> from optimizer.problem import Engine, Instance, StepTime
    >>> from optimizer.simulator import simulate
    >>> engine = Engine(name="toy", kv_blocks=100, step_time=StepTime.affine(base_s=0.5))
    >>> requests = Requests.from_columns({"prompt_tokens": [10, 20], "output_tokens": [1, 3]})
    >>> metrics = simulate(Instance("toy", requests, engine)).metrics
    >>> value_of(metrics, requests, "makespan"), value_of(metrics, requests, "mean-latency")
    (1.5, 1.0)
    """
    if objective == "makespan":
        return float(metrics.makespan_s)
    if objective == "ttft":
        return float(metrics.ttft_s.mean())
    if objective == "goodput":
        return float(1 - metrics.met_slo.mean())
    if objective == "weighted-latency" and requests.weight is not None:
        return float(np.average(metrics.e2e_s, weights=requests.weight))
    return float(metrics.e2e_s.mean())

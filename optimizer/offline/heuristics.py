"""Where a search starts: policies that keep to the engine's limits, and the orders and limits that plans are made of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from optimizer.offline.packing import packed_order
from optimizer.policies import make_policy, policy_names
from optimizer.problem import Instance

BASELINE = "vllm-v1"
_FIRST = (BASELINE, "svf", "mc-sf", "lpt", "horizon", "sorted-f", "sjf", "sarathi-serve", "fastgen")
"""Those that tell most, first; a large instance tries no others."""
_SLOW = ("rolling-horizon",)
"""It solves while it runs: minutes, and on the way to where a search begins."""
_MANY = 3000
_LEAST_TOKENS = 16
_SMALL = 40
"""So few requests are worth any size of step and batch that is a sum of their own prompts."""


def policies(instance: Instance) -> list[str]:
    """Name the policies to try, in order: those that keep the token budget and page their KV cache."""
    fitting = [name for name in policy_names() if name not in _SLOW and _fits(name)]
    first = [name for name in _FIRST if name in fitting]
    if len(instance.requests) > _MANY:
        return first
    return first + [name for name in fitting if name not in first]


def _fits(name: str) -> bool:
    policy = make_policy(name)
    # Others compute what the engine cannot, or hold more than they need: no bound speaks of the former.
    return policy.has_budget and policy.pages and policy.block_tokens is None


def orders(instance: Instance, seed: int, seats: int) -> dict[str, tuple[int, ...]]:
    """Give orders of the requests by name, the foremost first.

    `packed` deals them out to `seats` so that all seats are done at about the same time.

    `longest-then-mixed` starts the few requests that make the critical path, and then mixes the rest: requests of all
    lengths side by side end at different times, and so their ramps of KV never peak together.
    """
    requests = instance.requests
    prompt = requests.prompt_tokens
    output = requests.output_tokens if requests.known is None else requests.known.estimate
    rows = np.arange(len(requests))
    drawn = np.random.default_rng(seed).permutation(len(requests))
    weight = np.ones(len(requests)) if requests.weight is None else np.maximum(requests.weight, 1e-9)
    volume = prompt * output + output * (output - 1) / 2
    long = output > np.quantile(output, 0.98)
    found = {
        "arrival": rows,
        "shortest": np.lexsort((rows, output / weight)),
        "smallest": np.lexsort((rows, volume / weight)),
        "least-work": np.lexsort((rows, (prompt + output) / weight)),
        "longest": np.lexsort((rows, -output)),
        "longest-then-mixed": np.lexsort((drawn, np.where(long, -output, 0))),
        "mixed": drawn,
    }
    if seats < len(requests):
        found["packed"] = np.array(packed_order(np.rint(output).astype(np.int64) - 1, seats))
    if requests.deadline_s is not None:
        found["deadline"] = np.lexsort((rows, np.nan_to_num(requests.deadline_s, nan=np.inf)))
    return {name: tuple(order.tolist()) for name, order in found.items()}


def token_limits(instance: Instance) -> list[int]:
    """Give sizes of steps worth trying: where the step-time model changes its regime, and powers of two."""
    engine, prompts = instance.engine, instance.requests.prompt_tokens
    budget = engine.max_num_batched_tokens
    ends = {regime.min_tokens - 1 for regime in engine.step_time.regimes}
    doublings = {_LEAST_TOKENS << k for k in range(budget.bit_length())}
    between = {3 * (_LEAST_TOKENS << k) // 2 for k in range(budget.bit_length())}
    least = _LEAST_TOKENS
    if len(prompts) <= _SMALL:
        least = 1
        sums = np.cumsum(np.sort(prompts)).tolist() + np.cumsum(np.sort(prompts)[::-1]).tolist()
        ends |= {*range(1, 2 * _LEAST_TOKENS), *prompts.tolist(), *sums}
    return sorted(size for size in ends | doublings | between if least <= size < budget)


def neighbours(order: tuple[int, ...], rng: np.random.Generator, reach: int) -> Iterator[tuple[int, ...]]:
    """Give orders near one, without end: a few requests change places, or one moves.

    Parameters
    ----------
    order
        Where to start from.
    rng
        Draws.
    reach
        How far a request moves at most, in places.
    """
    n = len(order)
    while True:
        changed = list(order)
        kind = rng.integers(3)
        if kind == 0:
            i = int(rng.integers(n))
            j = min(n - 1, max(0, i + int(rng.integers(-reach, reach + 1))))
            changed[i], changed[j] = changed[j], changed[i]
        elif kind == 1:
            i = int(rng.integers(n))
            j = min(n - 1, max(0, i + int(rng.integers(-reach, reach + 1))))
            changed.insert(j, changed.pop(i))
        else:
            i = int(rng.integers(n))
            size = int(rng.integers(2, 13))
            places = rng.integers(max(0, i - reach), min(n, i + reach + 1), size)
            places = np.unique(places)
            values = [changed[p] for p in places]
            for p, q in zip(places, rng.permutation(len(places)), strict=True):
                changed[p] = values[q]
        yield tuple(changed)

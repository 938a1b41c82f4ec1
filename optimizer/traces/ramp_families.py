"""Synthetic families in equal rounds: the lengths of `generate`, and the cache that the literature pairs them with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from optimizer.errors import InputError
from optimizer.problem.ramps import Ramps
from optimizer.traces.generators import generate

_CAPACITY = {"chat": 16_492, "mixed-long": 65_536, "gsm8k-like": 65_536}
"""Tokens of KV. 16,492 is the cache of the simulations in arXiv 2502.07115 (at second hand); 65,536 is our choice."""
_SMALL = "kv-ramps"
_SMALL_CAPACITY = (30, 50)
"""The range of the small instances attributed to arXiv 2502.07115, where n is 40 to 60."""


def ramp_families() -> list[str]:
    """Give the names that `ramp_family` knows.

    >>> ramp_families()
    ['chat', 'mixed-long', 'gsm8k-like', 'kv-ramps']
    """
    return [*_CAPACITY, _SMALL]


def ramp_family(name: str, n: int, seed: int, *, load: float | None = None) -> Ramps:
    """Draw an instance of a family in rounds.

    A request of s prompt and o output tokens holds s + j tokens in its j-th round, j = 1..o, as in the papers
    (arXiv 2502.07115, 2508.06133, 2606.22327).

    Parameters
    ----------
    name
        One of `ramp_families()`. Lengths are those of `generate` with the same name, whose laws are described
        there; `kv-ramps` draws its capacity, too, from U[30, 50].
    n
        Requests, at least 1.
    seed
        At least 0.
    load
        Poisson arrivals at which the requests' area comes at this multiple of what the cache can take, > 0;
        None: all arrive at round 0.

    Raises
    ------
    InputError
        If there is no such family, or a number makes no sense.

    Examples
    --------
    >>> ramps = ramp_family("chat", 1000, seed=1)
    >>> len(ramps), ramps.capacity, int(ramps.arrival.max())
    (1000, 16492, 0)
    >>> int(ramp_family("chat", 1000, seed=1, load=0.9).arrival.max()) > 500
    True
    """
    if name not in ramp_families():
        raise InputError(f"{name!r} is no family; expected one of {', '.join(ramp_families())}", field="name")
    if load is not None and not 0 < load < np.inf:
        raise InputError(f"{load}; expected a number > 0", field="load")
    if name == _SMALL:
        rng = np.random.default_rng([max(seed, 0), len(_SMALL)])
        capacity = int(rng.integers(*_SMALL_CAPACITY, endpoint=True))
        requests = generate(name, n, seed, kv_tokens=capacity)
    else:
        capacity = _CAPACITY[name]
        requests = generate(name, n, seed)
    ramps = Ramps.of(requests.prompt_tokens + 1, requests.output_tokens, capacity=capacity)
    if load is None:
        return ramps
    options = {"kv_tokens": capacity} if name == _SMALL else {}
    timed = generate(name, n, seed, rate=load * capacity / float(ramps.area.mean()), **options)
    return replace(ramps, arrival=np.ceil(timed.arrival_s - 1e-9).astype(np.int64))

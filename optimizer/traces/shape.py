"""Shape a workload: cut a window out, stretch the time axis, clip lengths, choose tenants, draw arrivals.

All are pure: they give new requests, of which the first arrives at 0. A deadline keeps its distance from
its request's arrival.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from optimizer.errors import InputError
from optimizer.problem import LengthKnowledge, PrefixHashes, Requests
from optimizer.problem.columns import Floats, Ints
from optimizer.traces.renewal import drawn_arrivals, need_positive


def window(
    requests: Requests,
    *,
    first: int | None = None,
    count: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> Requests:
    """Cut out the requests that arrive in a span of time, and of those some in a row.

    Parameters
    ----------
    requests
        Any requests.
    first, count
        Leave out so many requests at the beginning (>= 0), then keep so many (>= 1).
    start_s, end_s
        Keep arrivals in [start_s, end_s).

    Raises
    ------
    InputError
        If nothing is left, or a bound makes no sense.

    Examples
    --------
    >>> r = Requests.from_columns({"arrival_s": [0, 5, 9], "prompt_tokens": [1, 2, 3], "output_tokens": [1, 1, 1]})
    >>> window(r, start_s=4).arrival_s.tolist()
    [0.0, 4.0]
    """
    for name, value, least in (("first", first, 0), ("count", count, 1)):
        if value is not None and value < least:
            raise InputError(f"{value}; expected a whole number >= {least}", field=name)
    for name, moment in (("start_s", start_s), ("end_s", end_s)):
        if moment is not None and not moment >= 0:
            raise InputError(f"{moment}; expected a number of seconds >= 0", field=name)
    a = requests.arrival_s
    low = 0 if start_s is None else int(np.searchsorted(a, start_s, "left"))
    high = len(a) if end_s is None else int(np.searchsorted(a, end_s, "left"))
    low += first or 0
    if count is not None:
        high = min(high, low + count)
    if low >= high:
        raise InputError(
            f"the window leaves nothing: there are {len(a)} requests from 0 to {a[-1]:g} s, and "
            f"first={first}, count={count}, start_s={start_s}, end_s={end_s} is none of them"
        )
    return _from_zero(requests.take(slice(low, high)))


def scale_time(requests: Requests, factor: float) -> Requests:
    """Multiply all arrivals by a factor: 0.5 makes the load twice as high.

    Parameters
    ----------
    requests
        Any requests.
    factor
        Above 0.

    Raises
    ------
    InputError
        If the factor is no number above 0.
    """
    need_positive(factor, "factor")
    return _arriving_at(requests, (requests.arrival_s - requests.arrival_s[0]) * factor)


def to_rate(requests: Requests, requests_per_s: float) -> Requests:
    """Scale the time axis so that the requests arrive at a given mean rate.

    The rate of n requests is n over the time from the first arrival to the last.

    Parameters
    ----------
    requests
        With arrivals that are not all the same.
    requests_per_s
        Above 0.

    Raises
    ------
    InputError
        If all arrive at once: then there is nothing to scale, and arrivals are to be drawn.

    Examples
    --------
    >>> r = Requests.from_columns({"arrival_s": [0, 4, 8], "prompt_tokens": [1, 2, 3], "output_tokens": [1, 1, 1]})
    >>> to_rate(r, 3.0).arrival_s.tolist()
    [0.0, 0.5, 1.0]
    """
    need_positive(requests_per_s, "rate")
    span = float(requests.arrival_s[-1] - requests.arrival_s[0])
    if span == 0:
        raise InputError("all requests arrive at the same time; draw arrivals instead", field="rate")
    return scale_time(requests, len(requests) / requests_per_s / span)


def clip_lengths(
    requests: Requests,
    *,
    max_prompt: int | None = None,
    max_output: int | None = None,
    max_total: int | None = None,
) -> Requests:
    """Shorten what is too long for a model.

    Prompts and outputs are cut to their own limits first. What is then above `max_total` is cut from the
    prompt, as Vidur's trace reader does, which leaves at least one prompt token. Block hashes of the part
    cut off go too, and so does that of a block cut in two.

    Parameters
    ----------
    requests
        Any requests.
    max_prompt, max_output
        In tokens, at least 1; None: no limit.
    max_total
        Prompt and output together, at least 2; None: no limit.

    Raises
    ------
    InputError
        If a limit is below what it must be.

    References
    ----------
    Agrawal et al., Vidur, MLSys 2024, arXiv 2405.05465.

    Examples
    --------
    >>> r = Requests.from_columns({"prompt_tokens": [100, 10], "output_tokens": [30, 5]})
    >>> clip_lengths(r, max_total=50).prompt_tokens.tolist()
    [20, 10]
    """
    for name, limit, least in (
        ("max_prompt", max_prompt, 1),
        ("max_output", max_output, 1),
        ("max_total", max_total, 2),
    ):
        if limit is not None and limit < least:
            raise InputError(f"{limit}; expected a whole number >= {least}", field=name)
    longest = min(
        (limit for limit in (max_output, None if max_total is None else max_total - 1) if limit is not None),
        default=None,
    )
    output, cap, known = requests.output_tokens, requests.max_output_tokens, requests.known
    if longest is not None:
        output = np.minimum(output, longest)
        cap = None if cap is None else np.minimum(cap, longest)
        known = None if known is None else _clipped_knowledge(known, longest)
    prompt = requests.prompt_tokens
    if max_prompt is not None:
        prompt = np.minimum(prompt, max_prompt)
    if max_total is not None:
        prompt = np.minimum(prompt, max_total - output)
    prefix = requests.prefix
    if prefix is not None and (prompt < requests.prompt_tokens).any():
        prefix = _clipped_prefix(prefix, requests.prompt_tokens, prompt)
    return requests.replace(
        prompt_tokens=prompt, output_tokens=output, max_output_tokens=cap, known=known, prefix=prefix
    )


def only_tenants(requests: Requests, names: Collection[str]) -> Requests:
    """Keep the requests of some tenants.

    Parameters
    ----------
    requests
        With tenants.
    names
        At least one; each must occur.

    Raises
    ------
    InputError
        If the requests have no tenants, or a name does not occur among them.
    """
    if requests.tenant is None:
        raise InputError("these requests have no tenants; nothing can be chosen by them", field="tenant")
    known = list(dict.fromkeys(requests.tenant))
    for name in names:
        if name not in known:
            shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
            raise InputError(f"{name!r} is no tenant here; there are {shown}", field="tenant")
    wanted = set(names)
    rows = np.flatnonzero([tenant in wanted for tenant in requests.tenant])
    if not rows.size:
        raise InputError(f"no tenant is named, which leaves out all {len(requests)} requests", field="tenant")
    return _from_zero(requests.take(rows))


def spread_ticks(requests: Requests, *, tick_s: float = 3.0, seed: int = 0) -> Requests:
    """Spread arrivals that were recorded on a grid uniformly inside their ticks, and sort them again.

    Mooncake's traces lie on a grid of about 3 s; taken as they are, every statistic of bursts measures
    the grid.

    Parameters
    ----------
    requests
        Any requests; every column goes along with its request.
    tick_s
        Width of a tick, above 0.
    seed
        Of the jitter.

    Raises
    ------
    InputError
        If the tick is no number above 0.
    """
    need_positive(tick_s, "tick_s")
    jitter = np.random.default_rng(seed).uniform(0.0, tick_s, len(requests))
    moved = _arriving_at(requests, requests.arrival_s + jitter)
    return _from_zero(moved.take(np.argsort(moved.arrival_s, kind="stable")))


def draw_arrivals(requests: Requests, rate: float, *, cv: float = 1.0, seed: int = 0) -> Requests:
    """Draw new arrivals, the order of the requests kept; the first arrives at 0.

    Parameters
    ----------
    requests
        Any requests; their own arrivals are forgotten.
    rate
        Mean requests per second, above 0.
    cv
        Coefficient of variation of the gaps: 1 a Poisson process, above 1 bursts (Gamma gaps), 0 a metronome.
    seed
        Of the gaps.

    Raises
    ------
    InputError
        If the rate is no number above 0 or the coefficient is below 0.

    Examples
    --------
    >>> r = Requests.from_columns({"prompt_tokens": [1, 2, 3], "output_tokens": [1, 1, 1]})
    >>> draw_arrivals(r, rate=2.0, cv=0.0).arrival_s.tolist()
    [0.0, 0.5, 1.0]
    """
    rng = np.random.default_rng(seed)
    return _arriving_at(requests, drawn_arrivals(len(requests), rate, cv, rng))


def _arriving_at(requests: Requests, arrival_s: Floats) -> Requests:
    deadline = requests.deadline_s
    if deadline is not None:
        deadline = np.maximum(deadline - requests.arrival_s + arrival_s, 0.0)
    return requests.replace(arrival_s=arrival_s, deadline_s=deadline)


def _from_zero(requests: Requests) -> Requests:
    return _arriving_at(requests, requests.arrival_s - requests.arrival_s[0])


def _clipped_knowledge(known: LengthKnowledge, longest: int) -> LengthKnowledge:
    mean = None if known.mean is None else np.minimum(known.mean, float(longest))
    return LengthKnowledge(
        np.minimum(known.low, longest), np.minimum(known.high, longest), mean, known.log_sigma
    )


def _clipped_prefix(prefix: PrefixHashes, before: Ints, after: Ints) -> PrefixHashes:
    sizes = np.diff(prefix.starts)
    kept = np.where(after < before, np.minimum(sizes, after // prefix.block_tokens), sizes)
    starts = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    place = np.arange(len(prefix.ids)) - np.repeat(prefix.starts[:-1], sizes)
    return PrefixHashes(
        prefix.ids[place < np.repeat(kept, sizes)], starts, prefix.block_tokens, prefix.covers_outputs
    )

"""Bounds from the work that has to be done: lines below the step time, added up over the steps that requests need.

When k requests are done, the steps so far have done all the work of these k. By a line that lies below every step's time they
took at least the line's value of that work: the k smallest of the requests' values, and the line's base for each step
that the k-th shortest request needs. With several lines the best one counts, for each k anew (theory: volume bounds
such as those of arXiv 2606.22327 are the line that is 0 but for the context).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction

from optimizer.certificates.step_lines import Line, Work, least_work
from optimizer.problem import Instance
from optimizer.units import TICKS_PER_SECOND, moment_ticks


def work_bound(instance: Instance, lines: Sequence[Line], objective: str) -> Fraction:
    """Compute what lines prove: a lower bound on the objective, exactly.

    Parameters
    ----------
    instance
        Requests and engine.
    lines
        Proved (`proves`) and safe under preemption (`survives_preemption`); this function trusts that.
    objective
        `makespan`, `mean-latency`, `weighted-latency` or `ttft`; in seconds, weighted latency per unit of weight.

    Returns
    -------
    Fraction
        At most the objective of any schedule of the engine.
    """
    work = least_work(instance)
    if objective == "ttft":
        # The first token comes with the end of the prompt.
        work = [w._replace(steps=w.steps - w.decode_seqs, decode_seqs=0, decode_context=0) for w in work]
    arrival = [moment_ticks(a) for a in instance.requests.arrival_s.tolist()]
    if objective == "makespan":
        return Fraction(max(_makespan(work, arrival, line) for line in lines), TICKS_PER_SECOND)
    n, weight = len(work), instance.requests.weight
    if objective == "weighted-latency" and weight is not None:
        weights = [Fraction(w) for w in weight.tolist()]
        best = max(_weighted(work, arrival, weights, line, lines) for line in lines)
        return best / sum(weights) / TICKS_PER_SECOND
    if not any(arrival):
        return Fraction(sum(_completions(work, lines)), n * TICKS_PER_SECOND)
    alone = sum(_alone(w, lines) for w in work)
    shared = max(_shortest_remaining(work, arrival, line) for line in lines) - sum(arrival)
    return Fraction(max(alone, shared), n * TICKS_PER_SECOND)


def _alone(work: Work, lines: Sequence[Line]) -> int:
    """Time that a request needs with the engine to itself, at least."""
    return max(line.of(work) for line in lines)


def _share(work: Work, line: Line) -> int:
    """What a request adds to the steps of others: its work without the steps, which all may share."""
    return line.of(work._replace(steps=0))


def _makespan(work: Sequence[Work], arrival: Sequence[int], line: Line) -> int:
    """Requests that arrive at or after a moment are all served after it, whichever moment that is."""
    best = total = steps = 0
    for one, moment in sorted(zip(work, arrival, strict=True), key=lambda pair: -pair[1]):
        total += _share(one, line)
        steps = max(steps, one.steps)
        best = max(best, moment + total + line.rates[0] * steps)
    return best


def _completions(work: Sequence[Work], lines: Sequence[Line]) -> list[int]:
    """For each k the least moment at which k requests can be done; all arrive at 0."""
    steps = sorted(w.steps for w in work)
    best = sorted(_alone(w, lines) for w in work)
    for line in lines:
        total = 0
        for k, share in enumerate(sorted(_share(w, line) for w in work)):
            total += share
            best[k] = max(best[k], total + line.rates[0] * steps[k])
    return best


def _shortest_remaining(work: Sequence[Work], arrival: Sequence[int], line: Line) -> int:
    """Sum of completions of one machine that does `_share` of work: preemptive shortest remaining time is optimal there.

    References
    ----------
    L. Schrage (1968), Operations Research 16(3).
    """
    jobs = sorted((a, _share(w, line)) for w, a in zip(work, arrival, strict=True))
    waiting: list[int] = []
    now = total = 0
    for number, (moment, share) in enumerate(jobs):
        now = max(now, moment)
        heapq.heappush(waiting, share)
        until = jobs[number + 1][0] if number + 1 < len(jobs) else None
        while waiting and (until is None or now < until):
            shortest = heapq.heappop(waiting)
            if until is not None and now + shortest > until:
                heapq.heappush(waiting, shortest - (until - now))
                now = until
            else:
                now += shortest
                total += now
    return total


def _weighted(
    work: Sequence[Work],
    arrival: Sequence[int],
    weights: Sequence[Fraction],
    line: Line,
    lines: Sequence[Line],
) -> Fraction:
    """Weighted latencies, at least: of the same machine by mean busy times, or of each request alone.

    References
    ----------
    M. X. Goemans et al. (2002), SIAM J. Discrete Math. 15(2): serving the largest weight per work first, preemptively,
    minimises the weighted sum of mean busy times; a completion is at least the mean busy time plus half the work.
    """
    alone = sum((w * _alone(one, lines) for w, one in zip(weights, work, strict=True)), Fraction(0))
    share = [_share(one, line) for one in work]
    order = sorted(range(len(work)), key=lambda i: arrival[i])
    total = sum(
        (w * (Fraction(s, 2) if s else Fraction(a)) for w, s, a in zip(weights, share, arrival, strict=True)),
        Fraction(0),
    )
    waiting: list[tuple[Fraction, int, int]] = []
    now = 0
    for place, i in enumerate(order):
        now = max(now, arrival[i])
        if share[i]:
            heapq.heappush(waiting, (-weights[i] / share[i], i, share[i]))
        until = arrival[order[place + 1]] if place + 1 < len(order) else None
        while waiting and (until is None or now < until):
            urgency, j, left = heapq.heappop(waiting)
            done = left if until is None else min(left, until - now)
            # The stretch adds its middle, by its share of the request's work.
            total += weights[j] * Fraction(done, share[j]) * (now + Fraction(done, 2))
            now += done
            if done < left:
                heapq.heappush(waiting, (urgency, j, left - done))
    total -= sum((w * a for w, a in zip(weights, arrival, strict=True)), Fraction(0))
    return max(alone, total)

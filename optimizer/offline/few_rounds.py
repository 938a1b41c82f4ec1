"""Some KV ramps: prices with cliques, a search beside them, and for a handful a sweep that proves the optimum."""

from __future__ import annotations

from optimizer.bounds.clique_prices import CliquePrices, clique_prices
from optimizer.certificates.prices import Prices, bounding_ramps
from optimizer.offline.bounds import Bound, prices_bound, weighing
from optimizer.offline.rounds import Offer, Rounds, Run, now_and_then
from optimizer.problem.columns import Ints
from optimizer.solvers.beside import Beside
from optimizer.solvers.ramp_search import ramp_search
from optimizer.solvers.ramp_sweep import WIDTHS, can_sweep, ramp_sweep

_HANDFUL = 24
"""So many the sweep has a chance to prove."""
_FIRST_PART, _PRICES_PART = 0.02, 0.5
"""Parts of the time: of a first search, which prices and sweep begin with, and of what is left, for prices at most."""


def solve_few(run: Run, rounds: Rounds, start: Ints, offer: Offer) -> None:
    """Bring starting rounds and bounds until the time is up or the gap is reached.

    Parameters
    ----------
    run
        A solve for the mean or the weighted latency.
    rounds
        Its view; `is_few`.
    start
        A feasible schedule to begin with.
    offer
        Brings starting rounds.
    """
    ramps, seed = rounds.ramps, run.seed
    start = ramp_search(ramps, start=start, seed=seed, time_limit_s=_FIRST_PART * run.left_s)
    if offer(start, "search"):
        return
    with Beside(ramps, start, seed=seed + 1, time_limit_s=run.left_s) as beside:
        prices = _prices(run, rounds, start)
        if offer(beside.best(), "search"):
            return
        # Where arrivals within a round were moved to its end, nothing is proved of the instance.
        if len(ramps) <= _HANDFUL and can_sweep(ramps) and rounds.is_whole:
            _sweep(run, rounds, prices, beside, offer)
        while not (run.done() or run.left_s <= 0):
            seed += 2
            start = ramp_search(
                ramps,
                start=beside.best(),
                seed=seed,
                time_limit_s=run.left_s,
                on_incumbent=now_and_then(run, offer),
            )
            offer(start, "search")
        offer(beside.best(), "search")


def _prices(run: Run, rounds: Rounds, start: Ints) -> Prices:
    """Find prices, and bring the bounds that they prove; prices are on the true lengths, like every bound."""
    goal = run.goals[0]

    def prove(found: CliquePrices) -> bool:
        run.offer_bound(prices_bound(run.instance, goal, found.certificate))
        return run.done() or run.left_s <= 0

    ramps = weighing(bounding_ramps(run.instance), weighted=goal == "weighted-latency")
    limit = max(0.1, _PRICES_PART * run.left_s)
    return clique_prices(ramps, start, time_limit_s=limit, seed=run.seed, on_bound=prove).certificate


def _sweep(run: Run, rounds: Rounds, prices: Prices, beside: Beside, offer: Offer) -> None:
    """Widen the sweep until it proves something, with the best of the search beside it."""
    for width in WIDTHS:
        left = run.left_s
        if run.done() or left <= 0:
            return
        swept = ramp_sweep(rounds.ramps, prices, beside.best(), time_limit_s=left, widths=(width,))
        offer(swept.start, "sweep")
        if swept.bound > 0:
            run.offer_bound(Bound(rounds.latency_of(swept.bound), "sweep", None))

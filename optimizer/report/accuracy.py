"""How far the step times of a run may be off: the known error of its card, for the kinds of steps that it made.

What moves makespan and latencies is the error of sums of many steps, not that of one step. The best that a card
says of it is the mean absolute error of a step: errors within a run that stays in one corner (a batch size, a
context) mostly have one sign, and there the sum is off by about that much; where a run visits many corners they
cancel, and it is a bound. Checked on the measurements of this project: with steps of llama3.1-8b@h200 that are off
by 3.2 % on average, the sums of 50 narrow sweeps of decode steps are off by 2.3 % on average (4.2 % for the tenth
that is worst), and those of four whole runs, which mix them, by 0.04 to 0.8 %. The signed error of the sum over all
measured steps (`total`) is near zero for every fit, so it stands in only where it is larger than the mean. The
median leaves out what it should not: a few bad steps count in a sum.

Of an estimate, the band is the whole range in which estimates for that GPU were found to lie, from published figures of
other engines on it: which of them is like this one, nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimizer.capacity import EngineCard
from optimizer.capacity.cards import FitError
from optimizer.problem import Engine, Schedule
from optimizer.report.card import card_of, estimate_error

LEAST_FACTOR = 0.05
"""A step cannot take no time, however large the error of a card."""

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class RegimeError:
    """What is known of one kind of steps.

    Attributes
    ----------
    share
        Of the run's busy time.
    error
        Relative, >= 0.
    of
        The entry of the card's `fit_error` that it was taken from.
    """

    share: float
    error: float
    of: str


@dataclass(frozen=True, slots=True)
class KnownError:
    """How far the step times of a run may be off, all in one direction.

    Attributes
    ----------
    low, high
        Factors on every step time; None: nothing is known.
    origin
        Where that is known from, or why it is not.
    regimes
        By kind of step (`prefill`, `decode`, `mixed`), where the card says it.
    """

    low: float | None
    high: float | None
    origin: str
    regimes: Mapping[str, RegimeError]

    @property
    def error(self) -> float | None:
        """The larger of both deviations from 1; None: nothing is known."""
        if self.low is None or self.high is None:
            return None
        return round(max(1 - self.low, self.high - 1), _DIGITS)

    def to_document(self) -> dict[str, Any]:
        """Give the JSON form."""
        regimes = {
            name: {"share": of.share, "error": of.error, "of": of.of} for name, of in self.regimes.items()
        }
        factors = None if self.low is None else [self.low, self.high]
        return {
            "error": self.error,
            "step_time_factors": factors,
            "origin": self.origin,
            "regimes": regimes or None,
        }


def known_error(engine: Engine, schedule: Schedule, card: EngineCard | None = None) -> KnownError:
    """Say how far the step times of a run may be off.

    With a card that states errors: for each kind of step the mean absolute error of a step (or the error of their
    sum, if that is larger), weighted with the share of busy time that the run spent in such steps. A kind
    without an entry takes that of `all` steps, else the worst entry there is. An estimate has the range in which
    estimates for its GPU were found to lie; of anything else nothing is known.

    Parameters
    ----------
    engine, schedule
        As simulated.
    card
        Where it is none of the catalogue.

    Examples
    --------
    >>> from optimizer.capacity import engine
    >>> from optimizer.problem import Instance, Requests
    >>> from optimizer.simulator import simulate
    >>> requests = Requests.from_columns({"prompt_tokens": [100] * 9, "output_tokens": [30] * 9})
    >>> run = simulate(Instance("nine", requests, engine("llama3.1-70b-tp4@h100")))
    >>> known = known_error(run.instance.engine, run.schedule)
    >>> known.low < 1 < known.high
    True
    """
    card = card or card_of(engine)
    if card is not None and card.fit_error:
        regimes = {
            name: RegimeError(share, *_of_regime(card.fit_error, name))
            for name, share in regime_shares(schedule).items()
        }
        error = sum(of.share * of.error for of in regimes.values())
        low, high = round(max(1 - error, LEAST_FACTOR), _DIGITS), round(1 + error, _DIGITS)
        return KnownError(low, high, "mean error of a step by the card", regimes)
    if engine.origin == "estimated":
        checked = estimate_error(engine, card)
        if checked is None:
            return KnownError(None, None, "estimated, and never checked on this GPU", {})
        # From the estimate to the truth. The estimate itself stays in the band even where all errors had one sign:
        # this engine may be unlike those that were published.
        low, high = (round(1 / (1 + off), _DIGITS) for off in (max(checked.high, 0), min(checked.low, 0)))
        return KnownError(low, high, f"so far off were estimates of {checked.points} figures of this GPU", {})
    why = "step times as given, without a card" if card is None else "the card states no error"
    return KnownError(None, None, why, {})


def regime_shares(schedule: Schedule) -> dict[str, float]:
    """Give the share of busy time by kind of step; a kind that did not occur is left out."""
    busy_s = schedule.end_s - schedule.start_s
    total_s = float(busy_s.sum())
    prefills, decodes = schedule.prefill_tokens > 0, schedule.decode_seqs > 0
    kinds = {"prefill": prefills & ~decodes, "decode": ~prefills, "mixed": prefills & decodes}
    return {
        name: round(float(busy_s @ rows.astype(np.float64)) / total_s, _DIGITS)
        for name, rows in kinds.items()
        if total_s > 0 and rows.any()
    }


def _of_regime(fit_error: Mapping[str, FitError], regime: str) -> tuple[float, str]:
    def size(entry: str) -> float:
        return max(fit_error[entry].mean, abs(fit_error[entry].total))

    entry = next((name for name in (regime, "all") if name in fit_error), None) or max(fit_error, key=size)
    return round(size(entry), _DIGITS), entry

"""Arrivals as a renewal process: gaps drawn one by one, all by the same law."""

from __future__ import annotations

import numpy as np

from optimizer.errors import InputError
from optimizer.problem.columns import Floats


def drawn_arrivals(count: int, rate: float, cv: float, rng: np.random.Generator) -> Floats:
    """Draw the arrivals of a renewal process, in seconds, seen from its first one.

    Raises
    ------
    InputError
        If the rate is no number above 0, or the coefficient of variation is below 0.
    """
    need_positive(rate, "rate")
    if not 0 <= cv < np.inf:
        raise InputError(f"{cv}; expected a finite number >= 0", field="cv")
    if cv == 0:
        gaps = np.full(count - 1, 1 / rate)
    elif cv == 1:
        gaps = rng.exponential(1 / rate, count - 1)
    else:
        gaps = rng.gamma(1 / cv**2, cv**2 / rate, count - 1)
    return np.concatenate([[0.0], np.cumsum(gaps)])


def need_positive(value: float, field: str) -> None:
    """Raise where a number is not finite and above 0.

    Raises
    ------
    InputError
        Names the field.
    """
    if not 0 < value < np.inf:
        raise InputError(f"{value}; expected a finite number above 0", field=field)

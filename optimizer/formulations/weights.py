"""Weights as whole numbers, for solvers that know no others."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

_FINEST = 10**6


def whole_weights(weights: Sequence[float]) -> tuple[list[int], int, bool]:
    """Give weights in decimal fractions of one, rounded down where a millionth is not fine enough.

    Returns
    -------
    tuple
        Whole weights; what one is in their units; whether anything was rounded.

    Examples
    --------
    >>> whole_weights([1.0, 0.25]), whole_weights([1 / 3])
    (([100, 25], 100, False), ([333333], 1000000, True))
    """
    exact = [Fraction(str(weight)) for weight in weights]
    unit = 1
    while unit < _FINEST and any((weight * unit).denominator > 1 for weight in exact):
        unit *= 10
    whole = [int(weight * unit) for weight in exact]
    return whole, unit, any(weight * unit != w for weight, w in zip(exact, whole, strict=True))

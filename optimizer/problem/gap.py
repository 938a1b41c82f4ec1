"""The gap: how far from optimal a value can be at most. This is its only definition."""

from __future__ import annotations

ROUND_OFF = 1e-6
"""Relative difference of value and bound that floating-point arithmetic explains."""


def gap(primal: float | None, dual: float | None) -> float | None:
    """Give (primal - dual) / primal of a minimisation.

    Parameters
    ----------
    primal
        Value of a feasible solution, >= 0; None where none is known.
    dual
        Lower bound on every feasible value; None where none is known.

    Returns
    -------
    float or None
        0 where value and bound meet; None where one of them is unknown, or where the value is 0 and the bound
        is below it: the quotient does not exist.

    Raises
    ------
    ValueError
        If the bound is above the value by more than round-off: one of the two is wrong.

    Examples
    --------
    >>> gap(10.0, 9.0), gap(10.0, None), gap(0.0, 0.0)
    (0.1, None, 0.0)
    """
    if primal is None or dual is None:
        return None
    if dual - primal > ROUND_OFF * max(1.0, abs(primal)):
        raise ValueError(f"the bound {dual} is above the value {primal}; one of them is wrong")
    if dual >= primal:
        return 0.0
    return (primal - dual) / primal if primal > 0 else None

"""Least squares over positive parameters, in numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from optimizer.capacity.steplog import Floats

_STEP = 1e-4
_ENOUGH = 1e-9


def fit_positive(residuals: Callable[[Floats], Floats], start: Sequence[float], rounds: int = 60) -> Floats:
    """Minimise the sum of squares of residuals over positive parameters: Levenberg-Marquardt on their logarithms.

    Parameters
    ----------
    residuals
        Of the parameters; smooth nearly everywhere.
    start
        All > 0.
    rounds
        Steps at most.

    References
    ----------
    D. W. Marquardt (1963). *An algorithm for least-squares estimation of nonlinear parameters*. SIAM J. 11(2).

    Examples
    --------
    >>> fit_positive(lambda x: np.log(x) - np.log([2.0, 0.5]), [1.0, 1.0]).round(6).tolist()
    [2.0, 0.5]
    """
    x = np.log(np.asarray(start, dtype=np.float64))
    found = residuals(np.exp(x))
    damping = 1e-2
    for _ in range(rounds):
        moved = [residuals(np.exp(x + one)) for one in _STEP * np.eye(len(x))]
        slopes = np.stack([(other - found) / _STEP for other in moved], axis=1)
        square, downhill = slopes.T @ slopes, -slopes.T @ found
        before = float(found @ found)
        while True:
            # A parameter that nothing depends on has a zero on the diagonal, and stays.
            trial = x + np.linalg.solve(square + damping * np.diag(np.diag(square) + _ENOUGH), downhill)
            there = residuals(np.exp(trial))
            if there @ there < before or damping > 1 / _ENOUGH:
                break
            damping *= 4
        gain = before - float(there @ there)
        if gain > 0:
            x, found, damping = trial, there, damping / 5
        if gain <= _ENOUGH * before:
            break
    return np.exp(x)

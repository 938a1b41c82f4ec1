"""Non-negative, robust least squares, in numpy alone."""

from __future__ import annotations

import numpy as np

from optimizer.capacity.steplog import Floats


def non_negative(matrix: Floats, target: Floats) -> Floats:
    """Minimise |matrix x - target| over x >= 0, by active sets.

    Parameters
    ----------
    matrix
        Rows x columns, rows >= 1; columns may be dependent.
    target
        Rows.

    References
    ----------
    C. L. Lawson, R. J. Hanson (1974). *Solving Least Squares Problems*, chapter 23.

    Examples
    --------
    >>> non_negative(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([3.0, -1.0])).tolist()
    [3.0, 0.0]
    """
    columns = matrix.shape[1]
    # A log has thousands of rows and a handful of columns: everything happens on the small square.
    square, slope = matrix.T @ matrix, matrix.T @ target
    free = np.zeros(columns, dtype=bool)
    x = np.zeros(columns)
    gradient = slope
    tolerance = 1e-10 * max(1e-300, float(np.abs(slope).max()))
    # Each round frees one column; ten times as many rounds as columns only ends a cycle of rounding errors.
    for _ in range(10 * columns):
        if free.all() or not (gradient[~free] > tolerance).any():
            break
        free[np.argmax(np.where(free, -np.inf, gradient))] = True
        while True:
            trial = np.zeros(columns)
            trial[free] = np.linalg.lstsq(square[np.ix_(free, free)], slope[free], rcond=None)[0]
            below = free & (trial <= 0)
            if not below.any():
                x = trial
                break
            step = np.min(x[below] / np.maximum(x[below] - trial[below], 1e-300))
            x = x + step * (trial - x)
            free &= x > 1e-14
            x[~free] = 0.0
        gradient = slope - square @ x
    return x


def robust_weights(relative_error: Floats, floor: float = 0.01) -> Floats:
    """Weights under which least squares leans to least absolute errors; errors below `floor` count alike.

    >>> robust_weights(np.array([0.0, 0.04])).round(3).tolist()
    [10.0, 5.0]
    """
    return 1 / np.sqrt(np.maximum(np.abs(relative_error), floor))

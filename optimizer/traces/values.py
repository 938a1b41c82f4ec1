"""Single values as files give them: what is a number, and how to show what is not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optimizer.problem.columns import Floats


def numbers(values: Sequence[Any]) -> Floats:
    """Turn cells or JSON values into floats; NaN where there is no number.

    A JSON string is no number, and neither is a boolean.

    >>> numbers(["3", "x", "1_0", ""]).tolist()
    [3.0, nan, nan, nan]
    """
    kinds = set(map(type, values))
    try:
        if kinds <= {int, float}:
            return np.array(values, dtype=np.float64)
        # float() takes underscores between digits, which no trace means.
        if kinds == {str} and not any("_" in v for v in values):
            return np.array(list(map(float, values)))
    except (ValueError, OverflowError):
        pass
    from_text = kinds <= {str}
    return np.array([_number(v, from_text) for v in values], dtype=np.float64)


def _number(value: Any, from_text: bool) -> float:
    if isinstance(value, str) and (not from_text or "_" in value):
        return np.nan
    try:
        return np.nan if isinstance(value, bool) else float(value)
    except OverflowError:
        return np.inf
    except (TypeError, ValueError):
        return np.nan


def show(value: Any) -> str:
    """Say what was given, at no great length.

    >>> show("-3"), show("many"), show(None)
    ('-3', "'many'", 'nothing is given')
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return "nothing is given"
    if isinstance(value, str) and not np.isnan(numbers([value])[0]):
        return value.strip()
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to write out integers of more than 4,300 digits.
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:57] + "..."

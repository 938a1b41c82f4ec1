"""Columns of numbers from outside: checked whole, with the first wrong row in the message."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

MOST_TOKENS = 10**8
"""No model has a context this long: a larger number is a mistake in the file."""

Locate = Callable[[int], dict[str, Any]]
"""From a row number to the keywords `file` and `line` of an `InputError`."""


def sequence(column: Any, field: str) -> Any:
    """Give a column as an array, a list or a tuple: rows count from 0, whatever index it had (pandas).

    Raises
    ------
    InputError
        If it is one value and no column.
    """
    is_one = isinstance(column, str | bytes | Mapping | Set) or getattr(column, "ndim", 1) == 0
    if is_one or not hasattr(column, "__len__"):
        raise InputError(f"{_show(column)} is no column; expected one value per request", field=field)
    return column if isinstance(column, list | tuple | np.ndarray) else list(column)


def whole_numbers(column: Any, field: str, where: Locate, *, least: int = 1, most: int = MOST_TOKENS) -> Ints:
    """Check that a column holds whole numbers in a range, and give it as int64.

    Raises
    ------
    InputError
        At the first row that does not.
    """
    as_float = _floats(column, field, where, f"a whole number from {least} to {most}")
    bad = ~((as_float >= least) & (as_float <= most) & (as_float == np.floor(as_float)))
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{_show(column[row])}; expected a whole number from {least} to {most}",
            **{"field": field, **where(row)},
        )
    return as_float.astype(np.int64)


def real_numbers(column: Any, field: str, where: Locate) -> Floats:
    """Check that a column holds finite numbers >= 0 (deadlines and levels may be absent), as float64."""
    may_be_absent = field in ("deadline_s", "ttft_slo_s", "tpot_slo_s")
    values = _floats(
        column, field, where, "a number of seconds >= 0" if field.endswith("_s") else "a number >= 0"
    )
    bad = ~(values >= 0) | np.isinf(values)
    if may_be_absent:
        bad &= ~np.isnan(values)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{_show(column[row])}; expected a finite number >= 0", **{"field": field, **where(row)}
        )
    return values


def _floats(column: Any, field: str, where: Locate, expected: str) -> Floats:
    try:
        array = np.asarray(column)
        # Python's True is a number to numpy, and no number to us.
        plain = isinstance(column, np.ndarray) or not any(isinstance(x, bool) for x in column)
        if array.dtype.kind in "iuf" and array.ndim == 1 and plain:
            return array.astype(np.float64)
    except (ValueError, OverflowError):
        pass
    values = np.empty(len(column))
    for row, value in enumerate(column):
        try:
            # float() takes underscores between digits, which no table means.
            if isinstance(value, bool | np.bool_) or (isinstance(value, str) and "_" in value):
                raise ValueError
            values[row] = float("nan" if value is None else value)
        except (TypeError, ValueError, OverflowError):
            raise InputError(
                f"{_show(value)}; expected {expected}", **{"field": field, **where(row)}
            ) from None
    return values


def _show(value: Any) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)) or value == "":
        return "nothing is given"
    return repr(value.item() if isinstance(value, np.generic) else value)


def check_order(arrival_s: Floats, where: Locate) -> None:
    """Raise where times run backwards."""
    back = np.flatnonzero(np.diff(arrival_s) < 0)
    if back.size:
        row = int(back[0]) + 1
        raise InputError(
            f"{arrival_s[row]} s is before the row above, {arrival_s[row - 1]} s; expected ascending times: sort the rows",
            **{"field": "arrival_s", **where(row)},
        )


def check_unique(ids: tuple[str, ...] | None, where: Locate) -> None:
    """Raise where an id stands twice."""
    if ids is None or len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    for row, name in enumerate(ids):
        if name in seen:
            raise InputError(
                f"{name!r} stands twice; expected every id once", **{"field": "ids", **where(row)}
            )
        seen.add(name)

"""From columns as read to checked requests: every bad row is raised, or listed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.problem import LengthKnowledge, PrefixHashes, Requests
from optimizer.problem.columns import MOST_TOKENS, Floats
from optimizer.traces.hashes import Hashes, too_many
from optimizer.traces.layout import MOST_SECONDS, SECONDS, Clock, Layout
from optimizer.traces.values import numbers, show

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Column:
    """One column as it stands in the file.

    Attributes
    ----------
    name
        The file's word for it.
    values
        Cells (str), or JSON values.
    """

    name: str
    values: Sequence[Any]


@dataclass(slots=True)
class Rows:
    """All rows of a file, unchecked.

    Attributes
    ----------
    file
        For error messages.
    lines
        The line of each row, from 1.
    columns
        By field of `Requests` (and `known_low`, `known_high`, `known_mean`, `known_log_sigma`).
    clock
        How `arrival_s` is written.
    hashes
        Block hashes, or None.
    broken
        Lines that are no rows at all, where such are skipped.
    note
        For `Trace.note`.
    """

    file: str
    lines: Sequence[int]
    columns: dict[str, Column]
    clock: Clock = SECONDS
    hashes: Hashes | None = None
    broken: list[tuple[int, str]] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Fault:
    """Rows that break one rule, and how to say so."""

    rows: Bools
    field: str
    problem: Callable[[int], str]


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a number must be."""

    least: float
    most: float
    whole: bool
    optional: bool = False

    @property
    def expected(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {self.least:.0f} to {self.most:.0f}"


_TOKENS = _Rule(1, MOST_TOKENS, whole=True)
_PLAIN = _Rule(0, MOST_SECONDS, whole=False)
_ABSENT = _Rule(0, MOST_SECONDS, whole=False, optional=True)
_RULES = {
    "prompt_tokens": _TOKENS, "output_tokens": _TOKENS, "max_output_tokens": _TOKENS,
    "known_low": _TOKENS, "known_high": _TOKENS, "known_mean": _PLAIN, "known_log_sigma": _PLAIN,
    "weight": _PLAIN, "deadline_s": _ABSENT, "ttft_slo_s": _ABSENT, "tpot_slo_s": _ABSENT,
}  # fmt: skip


def settle(rows: Rows, *, skip_bad_rows: bool) -> tuple[Requests, tuple[tuple[int, str], ...]]:
    """Check rows and make them requests, the first of which arrives at 0.

    Parameters
    ----------
    rows
        As read.
    skip_bad_rows
        List bad rows instead of raising at the first one.

    Returns
    -------
    tuple
        The requests, and the line and reason of every row left out, by line.

    Raises
    ------
    InputError
        At the first bad row, or where no good one is left.
    """
    values, faults = _numbers(rows)
    faults += _contradictions(rows, values)
    if rows.hashes is not None:
        faults.append(_Fault(rows.hashes.bad, rows.hashes.name, rows.hashes.problem))
    good = _good(faults, len(rows.lines))
    for check in (_repeated_ids, _backwards):
        faults += check(rows, values, good)
        good = _good(faults, len(rows.lines))
    if not skip_bad_rows and not good.all():
        _raise_first(rows, faults, good)
    block_tokens = None
    if rows.hashes is not None and good.any():
        block_tokens = rows.hashes.settle_block(values["prompt_tokens"], good, rows.file)
        over = too_many(rows.hashes, values["prompt_tokens"], block_tokens) & good
        faults.append(_Fault(over, rows.hashes.name, rows.hashes.surplus(block_tokens)))
        good = _good(faults, len(rows.lines))
    skipped = sorted([*rows.broken, *_reasons(rows, faults, good)])
    if skipped and not skip_bad_rows:
        _raise_first(rows, faults, good)
    if not good.any():
        first = f" (line {skipped[0][0]}, {skipped[0][1]})" if skipped else ""
        raise InputError(f"no good row is left; {len(skipped)} are bad{first}", file=rows.file)
    return _requests(rows, values, good, block_tokens), tuple(skipped)


def _numbers(rows: Rows) -> tuple[dict[str, Floats], list[_Fault]]:
    values: dict[str, Floats] = {}
    faults: list[_Fault] = []
    for what, column in rows.columns.items():
        if what == "arrival_s":
            clock = rows.clock
            found = clock.parse(column.values)
            bad = ~((found >= clock.least) & (found <= MOST_SECONDS * clock.units_per_second))
            expected = clock.expected
        elif what in _RULES:
            rule, found = _RULES[what], numbers(column.values)
            bad = ~((found >= rule.least) & (found <= rule.most))
            if rule.whole:
                bad |= found != np.floor(found)
            if rule.optional and bad.any():
                bad &= np.array([v is not None and v != "" for v in column.values])
            expected = rule.expected
        else:
            continue
        values[what] = found
        faults.append(_Fault(bad, column.name, _mismatch(column, expected)))
    return values, faults


def _mismatch(column: Column, expected: str) -> Callable[[int], str]:
    return lambda row: f"{show(column.values[row])}; expected {expected}"


def _contradictions(rows: Rows, values: dict[str, Floats]) -> list[_Fault]:
    output, found = values["output_tokens"], []
    cap = values.get("max_output_tokens")
    if cap is not None:
        found.append(
            _Fault(
                output > cap,
                rows.columns["output_tokens"].name,
                lambda row: f"{output[row]:.0f} is above the row's max_output_tokens, {cap[row]:.0f}",
            )
        )
    low, high = values.get("known_low"), values.get("known_high")
    if low is not None and high is not None:
        found.append(
            _Fault(
                (output < low) | (output > high),
                rows.columns["output_tokens"].name,
                lambda row: (
                    f"{output[row]:.0f} is outside what is known of it, {low[row]:.0f} to {high[row]:.0f}"
                ),
            )
        )
    return found


def _repeated_ids(rows: Rows, values: dict[str, Floats], good: Bools) -> list[_Fault]:
    column = rows.columns.get("ids")
    if column is None:
        return []
    seen: dict[str, int] = {}
    repeated = np.zeros(len(good), dtype=np.bool_)
    for row in np.flatnonzero(good).tolist():
        name = column.values[row]
        repeated[row] = name is None or name == "" or seen.setdefault(str(name), row) != row

    def problem(row: int) -> str:
        name = column.values[row]
        if name is None or name == "":
            return "nothing is given; expected a name"
        return f"{show(name)} stands already in line {rows.lines[seen[str(name)]]}; expected every id once"

    return [_Fault(repeated, column.name, problem)]


def _backwards(rows: Rows, values: dict[str, Floats], good: Bools) -> list[_Fault]:
    if "arrival_s" not in values:
        return []
    moments = values["arrival_s"]
    latest = np.maximum.accumulate(np.where(good, moments, -np.inf))
    # A row that runs back does not raise the maximum, so one early row does not condemn those behind it.
    column = rows.columns["arrival_s"]
    return [
        _Fault(
            good & (moments < latest),
            column.name,
            lambda row: (
                f"{show(column.values[row])} is earlier than a row above; expected ascending times: sort the rows"
            ),
        )
    ]


def _good(faults: list[_Fault], count: int) -> Bools:
    good = np.ones(count, dtype=np.bool_)
    for fault in faults:
        good &= ~fault.rows
    return good


def _first_fault(faults: list[_Fault], row: int) -> _Fault:
    return next(f for f in faults if f.rows[row])


def _reasons(rows: Rows, faults: list[_Fault], good: Bools) -> Iterator[tuple[int, str]]:
    for row in np.flatnonzero(~good).tolist():
        fault = _first_fault(faults, row)
        yield rows.lines[row], f"field {fault.field}: {fault.problem(row)}"


def _raise_first(rows: Rows, faults: list[_Fault], good: Bools) -> None:
    row = int(np.flatnonzero(~good)[0])
    fault = _first_fault(faults, row)
    raise InputError(fault.problem(row), file=rows.file, line=rows.lines[row], field=fault.field)


def _requests(rows: Rows, values: dict[str, Floats], good: Bools, block_tokens: int | None) -> Requests:
    kept = np.flatnonzero(good)
    columns: dict[str, Any] = {}
    for what, column in values.items():
        columns[what] = column[kept].astype(np.int64) if _RULES.get(what) is _TOKENS else column[kept]
    known = {name: columns.pop(f"known_{name}", None) for name in ("low", "high", "mean", "log_sigma")}
    if "arrival_s" in columns:
        # Moments are subtracted in the file's own unit, where they are whole numbers more often than not.
        origin = columns["arrival_s"][0]
        columns["arrival_s"] = (columns["arrival_s"] - origin) / rows.clock.units_per_second
        if "deadline_s" in columns and origin:
            moved = columns["deadline_s"] - origin / rows.clock.units_per_second
            columns["deadline_s"] = np.maximum(moved, 0.0)
    for what in ("ids", "tenant"):
        if what in rows.columns:
            cells = rows.columns[what].values
            columns[what] = ["" if cells[i] is None else str(cells[i]) for i in kept.tolist()]
    prefix: PrefixHashes | None = None
    if rows.hashes is not None and block_tokens is not None:
        prefix = rows.hashes.laid_out(kept.tolist(), block_tokens)
    return Requests.from_columns(
        columns,
        known=None if known["low"] is None or known["high"] is None else LengthKnowledge(**known),
        prefix=prefix,
        locate=lambda row: {"file": rows.file, "line": rows.lines[int(kept[row])]},
    )


def named_columns(layout: Layout, columns: dict[str, Sequence[Any]]) -> dict[str, Column]:
    """Give the columns that the layout uses, by field."""
    return {what: Column(name, columns[name]) for what, name in layout.fields(list(columns)).items()}

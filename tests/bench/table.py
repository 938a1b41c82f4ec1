"""Rows of the benchmark, and how they are printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Sample:
    """Several measurements of the same thing, the clock read before each."""

    values: tuple[float, ...]
    clocks: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def clock(self) -> float:
        """The middle reading of the clock, in events per second."""
        return statistics.median(self.clocks)


@dataclass(frozen=True, slots=True)
class Row:
    """One line.

    Attributes
    ----------
    what, unit
        What was measured, and in what: `requests/s`, `s`, `MB`, or `x` for a ratio.
    sample
        The measurements.
    at_least, at_most
        The target; None: there is none, the figure is for information.
    """

    what: str
    unit: str
    sample: Sample
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Say whether the median reaches the target; None: there is none."""
        if self.at_least is not None:
            return self.sample.median >= self.at_least
        return None if self.at_most is None else self.sample.median <= self.at_most

    def cells(self) -> tuple[str, ...]:
        """Give the cells of the line.

        >>> Row("import", "s", Sample((0.3, 0.1, 0.2), (2e6,) * 3), at_most=0.2).cells()
        ('import', '0.200 s (0.100 to 0.300)', '<= 0.200 s', 'yes', '2.00 M/s', '400,000')
        """
        values = self.sample.values
        measured = f"{figure(self.sample.median)} {self.unit}"
        if len(values) > 1:
            measured += f" ({figure(min(values))} to {figure(max(values))})"
        target = ""
        if self.at_least is not None:
            target = f">= {figure(self.at_least)} {self.unit}"
        elif self.at_most is not None:
            target = f"<= {figure(self.at_most)} {self.unit}"
        met = "" if self.met is None else ("yes" if self.met else "no")
        return self.what, measured, target, met, f"{self.sample.clock / 1e6:.2f} M/s", self._in_events()

    def _in_events(self) -> str:
        if self.unit == "requests/s":
            return f"{self.sample.clock / self.sample.median:,.0f} per request"
        return f"{round(self.sample.median * self.sample.clock, -3):,.0f}" if self.unit == "s" else ""

    def document(self) -> dict[str, Any]:
        """Give the line for a JSON file."""
        return {
            "what": self.what,
            "unit": self.unit,
            "median": self.sample.median,
            "values": list(self.sample.values),
            "at_least": self.at_least,
            "at_most": self.at_most,
            "met": self.met,
            "clock_events_per_second": list(self.sample.clocks),
        }


HEADER = ("what", "median (min to max)", "target", "met", "clock", "in clock events")


def figure(value: float) -> str:
    """Write a number with three digits that count, or all before the point.

    >>> [figure(v) for v in (0.01234, 1.5, 12.34, 123456.7)]
    ['0.0123', '1.50', '12.3', '123,457']
    """
    if abs(value) >= 100:
        return f"{value:,.0f}"
    decimals = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3 if abs(value) >= 0.1 else 4
    return f"{value:.{decimals}f}"


def render(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """Give the rows as aligned text, or as a Markdown table."""
    lines = [HEADER, *(row.cells() for row in rows)]
    if markdown:
        body = [f"| {' | '.join(cells)} |" for cells in lines]
        return "\n".join([body[0], "|" + " --- |" * len(HEADER), *body[1:]])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip() for cells in lines]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:]])

"""Tables of figures: aligned text for files and pipes, rich ones for terminals."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Cell = str | float | int | None
_ABSENT = "-"
_GAP = 3
"""Between two columns on a terminal."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    key
        Which value of a row it shows.
    heading, unit
        The two lines above it.
    best
        Whether the highest or the lowest value is the best one; None: there is no better or worse.
    scale
        What a value is multiplied with to get the unit: 1000 shows seconds as ms.
    rank
        Where width is short, columns of a low rank stay.
    """

    key: str
    heading: str
    unit: str = ""
    best: Literal["high", "low"] | None = None
    scale: float = 1.0
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of values by key; the first column names the row.

    A value of a key `x` may have a half-width of its confidence interval under the key `x_ci`.

    Examples
    --------
    >>> columns = (Column("policy", "policy"), Column("ttft", "TTFT", "ms", best="low", scale=1000))
    >>> print(Table(columns, [{"policy": "fcfs", "ttft": 0.25}, {"policy": "srpt", "ttft": 0.0305}]).plain())
             TTFT
    policy     ms
    -------------
    fcfs      250
    srpt    30.5*
    """

    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    title: str = ""

    def plain(self) -> str:
        """Give aligned text."""
        return "\n\n".join(([self.title] if self.title else []) + [self._block(self.columns)])

    def fitting(self, width: int) -> Table:
        """Give the table without the columns of highest rank, as far as it is wider than a terminal."""
        wide = {c.key: max(map(len, (c.heading, c.unit, *self._cells(c)))) + _GAP for c in self.columns}
        columns = list(self.columns)
        while len(columns) > 2 and sum(wide[c.key] for c in columns) + 2 > width:  # rich draws an edge
            # Of equal ranks the last goes first; what names the row stays.
            columns.remove(max(reversed(columns[1:]), key=lambda c: c.rank))
        return replace(self, columns=columns)

    def rich(self) -> RichTable:
        """Give a table for a terminal, the best values in bold green."""
        from rich import box
        from rich.table import Table as RichTable

        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title=self.title or None,
                          title_justify="left")  # fmt: skip
        for number, column in enumerate(self.columns):
            table.add_column(
                f"{column.heading}\n[dim]{column.unit}[/dim]" if column.unit else column.heading,
                justify="left" if number == 0 else "right",
                no_wrap=True,
            )
        for cells in zip(*(self._cells(column) for column in self.columns), strict=True):
            table.add_row(*(f"[bold green]{c}[/bold green]" if c.endswith("*") else c for c in cells))
        return table

    def _cells(self, column: Column) -> list[str]:
        values = [row.get(column.key) for row in self.rows]
        texts = [figure(value, column.scale) for value in values]
        best = self._best(column, values, texts)
        cells = []
        for row, text in zip(self.rows, texts, strict=True):
            spread = row.get(f"{column.key}_ci")
            shown = text if spread is None else f"{text} ±{figure(spread, column.scale)}"
            cells.append(shown + "*" if text == best else shown)
        return cells

    @staticmethod
    def _best(column: Column, values: Sequence[Any], texts: Sequence[str]) -> str | None:
        """Give the best value as it is shown: what nobody can see must not make a difference."""
        known = {
            v: text for v, text in zip(values, texts, strict=True) if isinstance(v, int | float) and v == v
        }
        # Where all are equal, none is best.
        if column.best is None or len(set(known.values())) < 2:
            return None
        return known[max(known) if column.best == "high" else min(known)]

    def _block(self, columns: Sequence[Column]) -> str:
        texts = [[c.heading, c.unit, *self._cells(c)] if any(x.unit for x in columns) else
                 [c.heading, *self._cells(c)] for c in columns]  # fmt: skip
        if any(c.unit for c in columns):
            # A column without a unit stands on the lower line.
            texts = [["", t[0], *t[2:]] if not c.unit else t for c, t in zip(columns, texts, strict=True)]
        wide = [max(map(len, column)) for column in texts]
        lines = [
            "  ".join(
                text.ljust(w) if i == 0 else text.rjust(w)
                for i, (text, w) in enumerate(zip(line, wide, strict=True))
            ).rstrip()
            for line in zip(*texts, strict=True)
        ]
        lines.insert(2 if any(c.unit for c in columns) else 1, "-" * (sum(wide) + 2 * (len(wide) - 1)))
        return "\n".join(lines)


def figure(value: Cell, scale: float = 1.0) -> str:
    """Show a number with three or more significant digits; a text as it is; None as a dash.

    >>> figure(12345.6), figure(1.5), figure(0.01234), figure(7), figure(None)
    ('12,346', '1.50', '0.0123', '7', '-')
    """
    if value is None or value != value:
        return _ABSENT
    if isinstance(value, str):
        return value
    if isinstance(value, int) and scale == 1.0:
        return f"{value:,}"
    number = value * scale
    size = abs(float(f"{number:.3g}"))  # so that 9.999 becomes 10.0
    if size >= 100 or size == 0:
        return f"{number:,.0f}"
    return f"{number:.{min(2 - math.floor(math.log10(size)), 9)}f}"


def two_columns(pairs: Sequence[tuple[str, str]], width: int | None = None) -> str:
    """Align names and what they say: for lists of policies, engines, figures.

    Parameters
    ----------
    pairs
        Name and text; without a name the text goes on below the one before.
    width
        Where lines break; None: nowhere.
    """
    wide = max((len(name) for name, _ in pairs), default=0) + 2
    if width is None or width < wide + 20:
        return "\n".join(f"{name.ljust(wide)}{text}".rstrip() for name, text in pairs)
    return "\n".join(
        textwrap.fill(text, width, initial_indent=name.ljust(wide), subsequent_indent=" " * wide,
                      break_long_words=False, break_on_hyphens=False)
        for name, text in pairs
    )  # fmt: skip

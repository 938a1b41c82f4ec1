"""Tables of figures: aligned text for files and pipes, rich ones for terminals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Cell = str | float | int | None
_ABSENT = "-"


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
    """

    key: str
    heading: str
    unit: str = ""
    best: Literal["high", "low"] | None = None
    scale: float = 1.0


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

    def plain(self, width: int | None = None) -> str:
        """Give aligned text; columns that do not fit into `width` characters go into a further block."""
        blocks = [self._block(part) for part in self._parts(width)]
        return "\n\n".join(([self.title] if self.title else []) + blocks)

    def rich(self, width: int) -> list[RichTable]:
        """Give rich tables that fit into a terminal of that width, the best values in bold green."""
        from rich import box
        from rich.table import Table as RichTable

        made = []
        for part in self._parts(width - 2, gap=3):  # rich pads each column and draws an edge
            table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, title_justify="left")
            for number, column in enumerate(part):
                table.add_column(
                    f"{column.heading}\n[dim]{column.unit}[/dim]" if column.unit else column.heading,
                    justify="left" if number == 0 else "right",
                    no_wrap=True,
                )
            for cells in zip(*(self._cells(column) for column in part), strict=True):
                table.add_row(*(f"[bold green]{c}[/bold green]" if c.endswith("*") else c for c in cells))
            made.append(table)
        if made and self.title:
            made[0].title = self.title
        return made

    def _cells(self, column: Column) -> list[str]:
        best = self._best(column)
        cells = []
        for row in self.rows:
            value = row.get(column.key)
            text = figure(value, column.scale)
            spread = row.get(f"{column.key}_ci")
            if spread is not None:
                text += f" ±{figure(spread, column.scale)}"
            cells.append(text + "*" if value is not None and value == best else text)
        return cells

    def _best(self, column: Column) -> float | None:
        values = [row.get(column.key) for row in self.rows]
        known: list[float] = [v for v in values if v is not None and not isinstance(v, str)]
        # Where all are equal, none is best.
        if column.best is None or len(set(known)) < 2:
            return None
        return max(known) if column.best == "high" else min(known)

    def _parts(self, width: int | None, gap: int = 2) -> list[list[Column]]:
        """Split the columns into parts that fit, each with the first column before it."""
        if width is None:
            return [list(self.columns)]
        wide = [max(map(len, (c.heading, c.unit, *self._cells(c)))) + gap for c in self.columns]
        parts: list[list[Column]] = [[self.columns[0]]]
        used = wide[0]
        for column, needed in zip(self.columns[1:], wide[1:], strict=True):
            if used + needed > width and len(parts[-1]) > 1:
                parts.append([self.columns[0]])
                used = wide[0]
            parts[-1].append(column)
            used += needed
        return parts

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


def two_columns(pairs: Sequence[tuple[str, str]]) -> str:
    """Align names and what they say: for lists of policies, engines, figures."""
    wide = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name.ljust(wide)}  {text}".rstrip() for name, text in pairs)

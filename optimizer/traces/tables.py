"""CSV files: the header against a layout, the cells into columns, the line of every row."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from optimizer.errors import InputError
from optimizer.traces.hashes import Hashes, read_hashes
from optimizer.traces.layout import Layout, Source
from optimizer.traces.rows import Rows, named_columns


def header_of(text: str) -> list[str]:
    """Give the names in the first line of a CSV text that is not blank."""
    return next(
        ([cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline="")) if row), []
    )


def read_table(source: Source, layout: Layout) -> Rows:
    """Read a CSV file by a layout.

    Parameters
    ----------
    source
        The file.
    layout
        Its format.

    Raises
    ------
    InputError
        On an unknown, missing or doubled column, a file without rows, and, unless bad rows are skipped, on
        a row with too few or too many cells.
    """
    reader = csv.reader(io.StringIO(source.text, newline=""))
    body: list[list[str]] = []
    try:
        header = [cell.strip() for cell in next((row for row in reader if row), [])]
        top = reader.line_num
        _check_header(header, layout, source.file, top)
        body = list(reader)
    except csv.Error as error:
        raise InputError(f"is no CSV: {error}", file=source.file, line=reader.line_num) from None
    lines: Sequence[int] = range(top + 1, top + 1 + len(body))
    broken: list[tuple[int, str]] = []
    # The usual file has one line per row and all cells in every row: then nothing is looked at row by row.
    if reader.line_num - top != len(body) or set(map(len, body)) != {len(header)}:
        body, lines, broken = _row_by_row(source, len(header), top)
    if not body:
        why = broken[0] if broken else (top, "only a header")
        raise InputError(f"there are no requests; {why[1]}", file=source.file, line=why[0])
    columns: dict[str, Sequence[Any]] = dict(zip(header, zip(*body, strict=True), strict=True))
    return Rows(
        source.file,
        lines,
        named_columns(layout, columns),
        layout.clock,
        _hashes(source, layout, columns),
        broken,
        layout.note,
    )


def _check_header(header: list[str], layout: Layout, file: str, line: int) -> None:
    for name in header:
        if header.count(name) > 1:
            raise InputError(
                "stands twice in the header; expected every column once", file=file, line=line, field=name
            )
    # A file of another format is better told what it lacks than which of its columns is odd.
    layout.reject_missing(header, file, line)
    layout.reject_unknown(header, file, line)


def _row_by_row(
    source: Source, width: int, top: int
) -> tuple[list[list[str]], list[int], list[tuple[int, str]]]:
    reader = csv.reader(io.StringIO(source.text, newline=""))
    body: list[list[str]] = []
    lines: list[int] = []
    broken: list[tuple[int, str]] = []
    end = 0
    for row in reader:
        line, end = end + 1, reader.line_num
        if end <= top or not row:
            continue
        if len(row) == width:
            body.append(row)
            lines.append(line)
            continue
        reason = f"{len(row)} cells; expected {width}, as in the header"
        if len(row) < width:
            reason += " (is the line cut off?)"
        if not source.skip_bad_rows:
            raise InputError(reason, file=source.file, line=line)
        broken.append((line, reason))
    return body, lines, broken


def _hashes(source: Source, layout: Layout, columns: dict[str, Sequence[Any]]) -> Hashes | None:
    for place in layout.hashes:
        if place.key in columns:
            blocks = columns.get(place.block_key) if place.block_key else None
            return read_hashes(place, columns[place.key], blocks, source.hash_block_tokens, source.file)
    return None

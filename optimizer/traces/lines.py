"""JSONL files: one object per line, its keys against a layout, the values into columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from optimizer.errors import InputError
from optimizer.traces.hashes import Hashes, read_hashes
from optimizer.traces.layout import Layout, Source
from optimizer.traces.rows import Rows, named_columns
from optimizer.traces.values import show


def read_objects(source: Source) -> tuple[list[dict[str, Any]], list[int], list[tuple[int, str]]]:
    """Parse one JSON object per line; blank lines count as lines and say nothing.

    Returns
    -------
    tuple
        The objects, the line of each, and the lines that hold no object (only where bad rows are skipped).

    Raises
    ------
    InputError
        At a line that is no JSON object, unless bad rows are skipped.
    """
    objects: list[dict[str, Any]] = []
    lines: list[int] = []
    broken: list[tuple[int, str]] = []
    for line, text in enumerate(source.text.split("\n"), start=1):
        if not text.strip():
            continue
        try:
            parsed = json.loads(text)
            if isinstance(parsed, dict):
                objects.append(parsed)
                lines.append(line)
                continue
            reason = f"{show(parsed)}; expected a JSON object"
        except json.JSONDecodeError as error:
            said = error.msg.removesuffix(" at")  # "Unterminated string starting at"
            reason = f"is no JSON: {said} at character {error.colno} (is the line cut off?)"
        except (ValueError, RecursionError):
            reason = "is no JSON that can be read: a number or a nesting is too long"
        if not source.skip_bad_rows:
            raise InputError(reason, file=source.file, line=line)
        broken.append((line, reason))
    return objects, lines, broken


def read_lines(source: Source, layout: Layout) -> Rows:
    """Read a JSONL file by a layout.

    Parameters
    ----------
    source
        The file.
    layout
        Its format.

    Raises
    ------
    InputError
        On an unknown or refused key, on a key that no line has, and, unless bad rows are skipped, on a line
        that is no object.
    """
    objects, lines, broken = read_objects(source)
    return rows_of(source, layout, objects, lines, broken)


def rows_of(
    source: Source,
    layout: Layout,
    objects: Sequence[dict[str, Any]],
    lines: Sequence[int],
    broken: list[tuple[int, str]],
) -> Rows:
    """Make rows of parsed objects; the objects' keys are the layout's words.

    Raises
    ------
    InputError
        As `read_lines`.
    """
    if not objects:
        line, why = broken[0] if broken else (None, "expected at least one")
        raise InputError(f"there are no requests; {why}", file=source.file, line=line)
    known = layout.columns
    names: dict[str, None] = {}
    for found, line in zip(objects, lines, strict=True):
        if not found.keys() <= known.keys():
            layout.reject_unknown(list(found), source.file, line)
        names.update(dict.fromkeys(found))
    layout.reject_missing(list(names), source.file, lines[0])
    columns: dict[str, Sequence[Any]] = {
        name: [o.get(name) for o in objects] for name in names if name not in layout.ignored
    }
    return Rows(
        source.file,
        lines,
        named_columns(layout, columns),
        layout.clock,
        _hashes(source, layout, columns),
        broken,
        layout.note,
    )


def _hashes(source: Source, layout: Layout, columns: dict[str, Sequence[Any]]) -> Hashes | None:
    present = [place for place in layout.hashes if place.key in columns]
    if not present:
        return None
    if len(present) > 1:
        raise InputError(
            f"{present[0].key} stands beside it; expected one of the two in a file",
            file=source.file,
            field=present[1].key,
        )
    place = present[0]
    blocks = columns.get(place.block_key) if place.block_key else None
    return read_hashes(place, columns[place.key], blocks, source.hash_block_tokens, source.file)

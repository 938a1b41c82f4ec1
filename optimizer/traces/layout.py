"""How a file format names things: its columns, its clock, its block hashes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optimizer.errors import InputError
from optimizer.problem.columns import Floats
from optimizer.traces.values import numbers

MOST_SECONDS = 1e10
"""Three hundred years; Unix times in seconds stay below it, and what is above is in another unit."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How a format writes moments.

    Attributes
    ----------
    parse
        From cells to moments in units, NaN where a cell is no moment.
    units_per_second
        1 for seconds, 1000 for milliseconds.
    least
        The earliest moment that makes sense, in units.
    expected
        For error messages.
    """

    parse: Callable[[Sequence[Any]], Floats] = numbers
    units_per_second: int = 1
    least: float = 0.0
    expected: str = f"a number of seconds from 0 to {MOST_SECONDS:.0e}"


SECONDS = Clock()
MILLISECONDS = Clock(units_per_second=1000, expected="a number of milliseconds >= 0")
NANOSECONDS = Clock(units_per_second=10**9, expected="a number of nanoseconds >= 0")


@dataclass(frozen=True, slots=True)
class HashLayout:
    """Where a format keeps block hashes.

    Attributes
    ----------
    key
        The column.
    form
        `ids`: a list of ids. `runs`: a list of [first, last] pairs, both included. `text`: the same runs
        as `0-12 17`.
    block_tokens
        What one id stands for; None: a column says so, or it is inferred from the numbers of ids.
    block_key
        That column.
    chained
        Whether equal ids imply an equal prefix; where not, ids are renumbered so that they do.
    """

    key: str
    form: Literal["ids", "runs", "text"] = "ids"
    block_tokens: int | None = None
    block_key: str | None = None
    chained: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of a CSV file, or keys of a JSONL file, and what each is for us.

    Attributes
    ----------
    name
        The format.
    kind
        `csv` or `jsonl`.
    required, optional
        From the file's word to the field of `Requests`. Where several optional columns give the same
        field, the first one listed wins and the others are ignored.
    ignored
        Columns that the format is known to have and that say nothing we use.
    refused
        Keys that mean something we cannot do, and what to tell the user.
    clock
        How `arrival_s` is written.
    hashes
        The places where block hashes may stand; the first that is there counts.
    note
        For `Trace.note`.
    """

    name: str
    kind: Literal["csv", "jsonl"]
    required: Mapping[str, str]
    optional: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    clock: Clock = SECONDS
    hashes: tuple[HashLayout, ...] = ()
    note: str = ""

    @property
    def columns(self) -> dict[str, None]:
        """All columns that a file may have, in order."""
        hashes = [w for h in self.hashes for w in (h.key, h.block_key) if w]
        return dict.fromkeys([*self.required, *self.optional, *hashes, *self.ignored])

    def reject_unknown(self, names: Sequence[str], file: str, line: int) -> None:
        """Raise at a column that the format does not have, or that it has and we refuse.

        Raises
        ------
        InputError
            With the column as field.
        """
        known = self.columns
        for name in names:
            if name in self.refused:
                raise InputError(self.refused[name], file=file, line=line, field=name)
            if name not in known:
                raise InputError(
                    f"unknown column; {self.name} has {', '.join(known)}: rename it, or take it out",
                    file=file,
                    line=line,
                    field=name,
                )

    def reject_missing(self, names: Sequence[str], file: str, line: int) -> None:
        """Raise where a column that the format needs is not among `names`.

        Raises
        ------
        InputError
            With the column as field.
        """
        for name in self.required:
            if name not in names:
                raise InputError(
                    f"missing column; {self.name} needs {', '.join(self.required)}",
                    file=file,
                    line=line,
                    field=name,
                )

    def fields(self, names: Sequence[str]) -> dict[str, str]:
        """Say which column gives which field of `Requests`, for a file with these columns."""
        chosen: dict[str, str] = {}
        for name, what in (*self.required.items(), *self.optional.items()):
            if name in names:
                chosen.setdefault(what, name)
        return chosen


@dataclass(frozen=True, slots=True)
class Source:
    """A file's text, and how it is to be read.

    Attributes
    ----------
    path
        The file.
    text
        All of it.
    skip_bad_rows
        Whether bad rows are listed instead of raised.
    hash_block_tokens
        Tokens per block hash, where the caller knows; None: as the file says.
    """

    path: Path
    text: str
    skip_bad_rows: bool = False
    hash_block_tokens: int | None = None

    @property
    def file(self) -> str:
        """The file, for error messages."""
        return str(self.path)


def read_text(path: str | Path) -> str:
    """Read a text file whole.

    Raises
    ------
    InputError
        If it cannot be read, is empty, or is no text in UTF-8.
    """
    file = str(path)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file=file) from None
    if not data.strip():
        raise InputError("the file is empty; expected at least one request", file=file)
    if b"\0" in data:
        raise InputError("this is a binary file; expected text (unpack it first)", file=file)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            "this is no text in UTF-8; unpack or convert it first", file=file, line=line
        ) from None

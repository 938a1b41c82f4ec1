"""What a command prints, and checks on the files it is asked to write."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimizer.errors import InputError

if TYPE_CHECKING:
    from optimizer.report.table import Table


def show(table: Table, all_in: str = "") -> None:
    """Print a table: in colour and as wide as a terminal, as aligned text into files and pipes.

    Columns that do not fit into a terminal are left out; `all_in` says where they are.
    """
    if not sys.stdout.isatty():
        print(table.plain())
        return
    from rich.console import Console

    console = Console()
    fitting = table.fitting(console.width)
    console.print(fitting.rich())
    if left := len(table.columns) - len(fitting.columns):
        where = f"; all are in {all_in}" if all_in else ""
        print(f"{left} more columns do not fit into {console.width} characters{where}")


def say(text: str) -> None:
    """Print a remark to standard error: results alone go to standard output."""
    print(text, file=sys.stderr)


def terminal_width() -> int | None:
    """Give the width of the terminal on standard output; None where it is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON object for people and programs, whole or not at all."""
    from optimizer.problem.files import written_whole

    with written_whole(path) as out:
        out.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def check_outputs(files: Iterable[Path | None], *, folder: Path | None, source: Path) -> None:
    """Refuse outputs that could not be written, before any work is done.

    Parameters
    ----------
    files
        Files the user named; None where there is none. Their folders must be there.
    folder
        The output folder, made when something is written into it.
    source
        The input, which no output may replace.

    Raises
    ------
    InputError
        On the first that cannot be written.
    """
    taken = {source.resolve(): "the input"}
    for path in files:
        if path is None:
            continue
        if path.is_dir():
            raise InputError("is a folder; expected the name of a file", file=str(path))
        if not path.parent.is_dir():
            raise InputError(f"the folder {path.parent} is not there; make it first", file=str(path))
        if not os.access(path.parent, os.W_OK):
            raise InputError(f"the folder {path.parent} cannot be written to", file=str(path))
        if path.resolve() in taken:
            raise InputError(
                f"is also {taken[path.resolve()]}; give each file a name of its own", file=str(path)
            )
        taken[path.resolve()] = "another output"
    if folder is not None:
        _check_folder(folder)


def _check_folder(folder: Path) -> None:
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise InputError("is a file; expected a folder", file=str(there))
    if not os.access(there, os.W_OK):
        raise InputError("cannot be written to", file=str(there))


def make_folder(folder: Path) -> Path:
    """Make the output folder, with those above it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder cannot be made: {error.strerror}", file=str(folder)) from None
    return folder

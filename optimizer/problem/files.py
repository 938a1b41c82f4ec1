"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

from optimizer.errors import InputError


@contextmanager
def written_whole(path: str | Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """Open a file beside `path`, and give it that name only when everything is in it.

    Of a symbolic link the target is replaced and the link stays. A device or a pipe cannot be replaced: it is
    written to as it is.

    Raises
    ------
    InputError
        If `path` is a folder or empty, or its folder is not there or cannot be written to.
    """
    if not os.fspath(path):
        raise InputError("the name of the file to write is empty; give it a name")
    path = Path(path)
    if path.is_dir():
        raise InputError("is a folder; expected the name of a file", file=str(path))
    if path.exists() and not path.is_file():
        with _opened(path, path, mode) as out:
            yield out
        return
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    out = _opened(draft, path, mode)
    try:
        with out:
            yield out
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _opened(path: Path, asked: Path, mode: Literal["w", "wb"]) -> IO[Any]:
    try:
        return path.open(mode) if "b" in mode else path.open(mode, encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=str(asked)) from None

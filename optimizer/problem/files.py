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

    Raises
    ------
    InputError
        If the folder is not there or cannot be written to.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        out: IO[Any] = draft.open(mode) if "b" in mode else draft.open(mode, encoding="utf-8", newline="")
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", file=str(path)) from None
    try:
        with out:
            yield out
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)

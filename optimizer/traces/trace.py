"""What reading a trace gives: the requests, and an honest account of how they were read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from optimizer.problem import Instance, Requests


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests read from a file.

    Attributes
    ----------
    requests
        In order of arrival; the first arrives at 0.
    format
        The name it was read by, one of `optimizer.traces.FORMATS`.
    path
        The file.
    skipped
        Rows left out because they are bad: the line in the file (from 1) and what is wrong with it.
        Empty unless bad rows were to be skipped.
    has_arrivals
        False where the file gives lengths alone: then all arrive at 0, and arrivals have to be drawn.
    note
        What was estimated or ignored, for a person to read; empty if nothing was.
    instance
        The whole instance, with its engine, where the file is one.
    """

    requests: Requests
    format: str
    path: Path
    skipped: tuple[tuple[int, str], ...] = ()
    has_arrivals: bool = True
    note: str = ""
    instance: Instance | None = None

    def __repr__(self) -> str:
        return f"Trace({len(self.requests)} requests, {self.format}, {self.path.name}, {len(self.skipped)} skipped)"

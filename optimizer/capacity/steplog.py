"""Step logs: what each step of a real engine computed and when, as arrays."""

from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.problem.engine import StepPiece, StepTime

Floats = NDArray[np.float64]

TIMES = ("start_s", "dispatched_s", "completed_s")
WORK = ("prefill_tokens", "prefill_attention", "prefill_seqs", "decode_seqs", "decode_context")
PHASES = ("decode", "prefill", "mixed")

_COEFFICIENTS = tuple(StepPiece.model_fields)


@dataclass(frozen=True, slots=True)
class StepLog:
    """One engine's steps, in the order in which they were scheduled.

    Attributes
    ----------
    start_s, dispatched_s, completed_s
        When the scheduler started, when it was done, when the step's tokens were there; seconds.
    work
        Steps x `WORK`: tokens, query-key pairs and requests of the prefills; requests and tokens of
        context of the decodes.
    workload
        The sweep or run that a step belongs to; times are compared only within one.
    """

    start_s: Floats
    dispatched_s: Floats
    completed_s: Floats
    work: Floats
    workload: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.start_s)

    def __getitem__(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> StepLog:
        return StepLog(
            self.start_s[rows],
            self.dispatched_s[rows],
            self.completed_s[rows],
            self.work[rows],
            self.workload[rows],
        )

    @property
    def phase(self) -> NDArray[np.str_]:
        """What each step is: `decode`, `prefill` or `mixed`."""
        prefills, decodes = self.work[:, 0] > 0, self.work[:, 3] > 0
        return np.where(prefills, np.where(decodes, "mixed", "prefill"), "decode")

    @property
    def tokens(self) -> Floats:
        """Scheduled tokens of each step."""
        return self.work[:, 0] + self.work[:, 3]

    @property
    def step_s(self) -> Floats:
        """From dispatch to tokens: the time of the step alone where scheduling was synchronous."""
        return self.completed_s - self.dispatched_s

    def per_coefficient(self) -> Floats:
        """Give steps x coefficients of `StepPiece`: what each coefficient is multiplied by.

        A log has no context of prefilling requests; that column is zero.
        """
        tokens, attention, seqs, decodes, context = self.work.T
        zero = np.zeros_like(tokens)
        return np.stack([zero + 1, tokens, attention, seqs, zero, decodes, context], axis=1)


def read_step_log(path: str | Path) -> StepLog:
    """Read a step log.

    Parameters
    ----------
    path
        CSV with the columns `TIMES` and `WORK`, and perhaps `workload`; others are passed over. May be
        compressed: `.gz`, `.bz2`, `.xz`.

    Raises
    ------
    InputError
        If the file cannot be read or is empty, a column is missing, a value is no number >= 0, a step ends
        before it was dispatched or takes no time, or its work cannot be (naming line and field).
    """
    needed = (*TIMES, *WORK)
    try:
        with _opened(Path(path)) as file:
            rows = csv.DictReader(file)
            absent = [name for name in needed if name not in (rows.fieldnames or ())]
            if absent:
                problem = f"has no column {absent[0]!r}; expected {', '.join(needed)}"
                raise InputError(problem, file=str(path), line=1)
            numbers, workloads = [], []
            for row in rows:
                numbers.append([_number(row, name, path, rows.line_num) for name in needed])
                workloads.append(row.get("workload") or "")
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}", file=str(path)
        ) from None
    if not numbers:
        raise InputError("holds no steps", file=str(path))
    table = np.array(numbers)
    _check(table, path)
    return StepLog(table[:, 0], table[:, 1], table[:, 2], table[:, 3:], np.array(workloads))


def read_step_logs(paths: Sequence[str | Path]) -> StepLog:
    """Read logs of one engine as one; the workloads of each file stay apart.

    Raises
    ------
    InputError
        As `read_step_log`, for the first that is wrong; or if there is none.
    """
    if not paths:
        raise InputError("no step log is given; give at least one")
    logs = [read_step_log(path) for path in paths]
    if len(logs) == 1:
        return logs[0]
    # Two files may be of the same name, and clocks begin anew in each.
    logs = [
        replace(log, workload=np.char.add(f"{number}:", log.workload)) for number, log in enumerate(logs, 1)
    ]
    return StepLog(*(np.concatenate([getattr(log, name) for log in logs]) for name in StepLog.__slots__))


def _opened(path: Path) -> IO[str]:
    opened: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    # A spreadsheet puts a mark before the first column's name.
    file: IO[str] = opened.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig", newline="")
    return file


def _check(table: Floats, path: str | Path) -> None:
    """Refuse the first step whose times or work cannot be."""
    start, dispatched, completed, tokens, attention, seqs, decodes, context = table.T
    backwards = "times run backwards; expected start_s <= dispatched_s < completed_s"
    wrong = [
        (dispatched < start, "dispatched_s", backwards),
        (completed <= dispatched, "completed_s", backwards),
        (tokens + decodes == 0, "prefill_tokens", "the step computes nothing; leave it out"),
        (seqs > tokens, "prefill_seqs", "more requests prefill than there are prefill_tokens"),
        ((tokens > 0) & (seqs == 0), "prefill_seqs", "nobody prefills, but there are prefill_tokens"),
        (attention < tokens, "prefill_attention", "fewer query-key pairs than prefill_tokens; "
         "n tokens after c cached ones make n*c + n*(n+1)/2"),
        (context < decodes, "decode_context", "less context than decode_seqs; each has a token at least"),
    ]  # fmt: skip
    found = [(int(np.argmax(rows)), field, problem) for rows, field, problem in wrong if rows.any()]
    if found:
        row, field, problem = min(found, key=lambda of: of[0])
        raise InputError(problem, file=str(path), line=row + 2, field=field)


def _number(row: dict[str, str], name: str, path: str | Path, line: int) -> float:
    text = row[name]
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value < float("inf"):
        raise InputError(f"{text!r} is no number >= 0", file=str(path), line=line, field=name)
    return value


def predict(model: StepTime, log: StepLog) -> Floats:
    """Give the time of every step by a model, in seconds; in floats, unlike `StepClock`.

    Examples
    --------
    >>> one = np.ones(1)
    >>> log = StepLog(one, one, one, np.array([[100.0, 5050.0, 1.0, 0.0, 0.0]]), np.array([""]))
    >>> predict(StepTime.affine(base_s=0.004, per_prefill_token_s=2e-5), log).tolist()
    [0.006]
    """
    columns, phases, tokens = log.per_coefficient(), log.phase, log.tokens
    times = np.zeros(len(log))
    for phase in PHASES:
        own = {r.min_tokens: r for r in model.regimes if r.phase == phase}
        every = {r.min_tokens: r for r in model.regimes if r.phase == "any"}
        regimes = own if 0 in own else {**every, **own}
        for least in sorted(regimes):
            rows = (phases == phase) & (tokens >= least)
            pieces = np.array([[getattr(p, name) for name in _COEFFICIENTS] for p in regimes[least].pieces])
            times[rows] = (columns[rows] @ pieces.T).max(axis=1)
    return times


def windows(log: StepLog, steps: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Cut an asynchronous log into stretches of consecutive steps whose total time is known.

    A step may be stamped up to one step late there, so only differences over several steps say something.
    A stretch in which the engine stood idle (a step started after everything before it was done) is left out.

    Parameters
    ----------
    log
        Steps in order.
    steps
        Length of a stretch, >= 1.

    Returns
    -------
    first, end, seconds
        The stretch is the steps first, ..., end - 1, and took `seconds`.

    Examples
    --------
    >>> done = np.arange(1.0, 7.0)
    >>> log = StepLog(done - 1, done - 1, done, np.ones((6, 5)), np.array([""] * 6))
    >>> [part.tolist() for part in windows(log, 3)]
    [[0, 3], [3, 6], [3.0, 3.0]]
    """
    idle = np.r_[True, (log.start_s[1:] > log.completed_s[:-1]) | (log.workload[1:] != log.workload[:-1])]
    begun = np.where(idle, log.start_s, np.r_[0.0, log.completed_s[:-1]])
    breaks = np.r_[0, np.cumsum(idle)]
    first = np.arange(0, len(log) - steps + 1, steps)
    end = first + steps
    # The engine may have stood idle before a stretch, but not within it.
    kept = breaks[end] == breaks[first + 1]
    first, end = first[kept], end[kept]
    return first, end, log.completed_s[end - 1] - begun[first]

"""Whole runs of a real engine as files: limits and totals, what happened to each request, and the steps."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optimizer.capacity.steplog import StepLog, read_step_log
from optimizer.errors import InputError
from optimizer.problem import Requests
from optimizer.problem.columns import Floats, Locate, real_numbers
from optimizer.problem.instance import from_pydantic, read_json

_LENGTHS = ("prompt_tokens", "output_tokens")
_TIMES = ("first_token_s", "finished_s")
_MOST_PREEMPTIONS = 10**9


class Limits(BaseModel):
    """What `run-*.json` says: under which limits the engine ran, and totals; other fields are passed over.

    Attributes
    ----------
    model, workload
        Names; together the name of the run.
    kv_blocks
        As vLLM reports it (`num_gpu_blocks`), with the null block that it never hands out.
    block_tokens, max_num_batched_tokens, max_num_seqs
        As in `Engine`.
    wall_s
        From the start of the client's clock to the end of its loop.
    steps, preemptions
        Counted in the engine; None: not stated.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(min_length=1)
    workload: str = Field(min_length=1)
    kv_blocks: int = Field(ge=2)
    block_tokens: int = Field(ge=1)
    max_num_batched_tokens: int = Field(ge=1)
    max_num_seqs: int = Field(ge=1)
    wall_s: float | None = Field(None, gt=0)
    steps: int | None = Field(None, ge=1)
    preemptions: int | None = Field(None, ge=0)


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredRun:
    """One run of a real engine.

    Attributes
    ----------
    name
        `<model>-<workload>`: the file's name without `run-` and `.json`.
    path
        Of the `.json` file.
    limits
        Its content.
    requests
        In the order in which they were sent; `arrival_s` is that moment on the client's clock.
    first_token_s, finish_s
        When the client had the first token, and the last one.
    sent
        Whether arrivals are the moments of sending; else the planned ones.
    """

    name: str
    path: Path
    limits: Limits
    requests: Requests
    first_token_s: Floats
    finish_s: Floats
    sent: bool

    @property
    def wall_s(self) -> float:
        """From the first request sent to the last one finished."""
        return float(self.finish_s.max() - self.requests.arrival_s[0])

    def step_log(self) -> StepLog | None:
        """Read `-steps.csv`, if there is one; a step of it may be stamped up to one step late."""
        path = _beside(self.path, "steps")
        return read_step_log(path) if path.is_file() else None

    def counted(self) -> tuple[int | None, int | None]:
        """Give steps and preemptions: as the `.json` states them, else as `-steps.csv` lists them."""
        steps, preemptions = self.limits.steps, self.limits.preemptions
        path = _beside(self.path, "steps")
        if (steps is None or preemptions is None) and path.is_file():
            rows = _rows(path, ())
            steps = len(rows) if steps is None else steps
            if preemptions is None and rows and "preempted" in rows[0]:
                where = _locate(path, [int(row["line"]) for row in rows])
                column = real_numbers([row["preempted"] for row in rows], "preempted", where)
                preemptions = int(min(column.sum(), _MOST_PREEMPTIONS))
        return steps, preemptions


def find_runs(folder: str | Path) -> list[Path]:
    """Give every `run-*.json` of a folder that has its `-requests.csv`, by name.

    Raises
    ------
    InputError
        If the folder is not there, holds no run, or a run lacks its requests.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("is no folder; expected one with run-<engine>-<workload>.json", file=str(folder))
    found = sorted(path for path in folder.glob("run-*.json") if path.is_file())
    if not found:
        raise InputError(
            "holds no runs; looked for run-<engine>-<workload>.json, each with a "
            "run-<engine>-<workload>-requests.csv beside it",
            file=str(folder),
        )
    for path in found:
        requests = _beside(path, "requests")
        if not requests.is_file():
            raise InputError(
                f"has no {requests.name} beside it; add it, or take the run away", file=str(path)
            )
    return found


def read_run(path: str | Path) -> MeasuredRun:
    """Read a run.

    Parameters
    ----------
    path
        Of its `.json`; `-requests.csv` lies beside it, with the columns prompt_tokens, output_tokens,
        first_token_s, finished_s, and sent_s or arrival_s.

    Raises
    ------
    InputError
        On anything that is wrong in either; names file, line and field.
    """
    path = Path(path)
    document = read_json(path)
    if not isinstance(document, dict):
        raise InputError(f"expected an object, found {type(document).__name__}", file=str(path))
    try:
        limits = Limits.model_validate(document)
    except ValidationError as error:
        raise from_pydantic(error, str(path)) from None
    table = _beside(path, "requests")
    rows = _rows(table, (*_LENGTHS, *_TIMES))
    if not rows:
        raise InputError("holds no requests", file=str(table))
    sent = all(row.get("sent_s") for row in rows)
    clock = "sent_s" if sent else "arrival_s"
    if clock not in rows[0]:
        raise InputError(
            "has no column 'sent_s', nor 'arrival_s'; expected one of them", file=str(table), line=1
        )
    unordered = _locate(table, [int(row["line"]) for row in rows])
    moments = real_numbers([row[clock] for row in rows], clock, unordered)
    # The engine takes requests in the order in which they come, whatever the order of the rows.
    order = np.argsort(moments, kind="stable")
    rows = [rows[i] for i in order]
    where = _locate(table, [int(row["line"]) for row in rows])
    requests = Requests.from_columns(
        {"arrival_s": moments[order], **{name: [row[name] for row in rows] for name in _LENGTHS}},
        locate=where,
    )
    first, finish = (real_numbers([row[name] for row in rows], name, where) for name in _TIMES)
    for early, late, field, what in (
        (requests.arrival_s, first, "first_token_s", f"{clock} is later"),
        (first, finish, "finished_s", "the first token came later"),
    ):
        if (wrong := np.flatnonzero(late < early)).size:
            row = int(wrong[0])
            problem = f"{late[row]:g} s, but {what}, {early[row]:g} s; expected ascending times"
            raise InputError(problem, **{"field": field, **where(row)})
    return MeasuredRun(path.stem.removeprefix("run-"), path, limits, requests, first, finish, sent)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{path.stem}-{kind}.csv")


def _rows(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """Read a CSV; every row also knows its `line`."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restval="")
            absent = [name for name in needed if name not in (reader.fieldnames or ())]
            if absent:
                problem = f"has no column {absent[0]!r}; expected {', '.join(needed)}"
                raise InputError(problem, file=str(path), line=1)
            return [{**row, "line": str(reader.line_num)} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
        raise InputError(problem, file=str(path)) from None


def _locate(path: Path, lines: list[int]) -> Locate:
    return lambda row: {"file": str(path), "line": lines[row]}

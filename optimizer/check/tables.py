"""The form of a schedule: rows that make no sense are named and set aside, so that the rest can be judged."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.check.report import Findings, Rule
from optimizer.problem import Engine, Schedule

_MOST = 10**12
"""Beyond any schedule's count of tokens or steps, and far from where sums of integers overflow."""

_RUNS = (
    "start_s", "end_s", "first_step_s", "steps", "decode_seqs", "decode_context", "prefill_tokens",
)  # fmt: skip
_BY_REQUEST = ("first_token_s", "finish_s")
_TABLES: dict[str, tuple[str, ...]] = {
    "chunk": ("run", "request", "tokens", "context"),
    "decode": ("request", "first_run", "last_run"),
    "preempt": ("run", "request"),
    "cached": ("run", "request", "tokens"),
    "hold": ("request", "first_run", "last_run", "offset", "tokens"),
}
_LEAST = {"tokens": 1, "context": 0, "offset": -1}


def sound_rows(schedule: Schedule, engine: Engine, found: Findings) -> Schedule | None:
    """Give the schedule without its impossible rows, each of which becomes a violation.

    Returns
    -------
    Schedule | None
        None where the columns do not even fit together: nothing more can be said then.
    """
    if not _fits_together(schedule, found):
        return None
    if schedule.block_tokens not in (engine.block_tokens, 1):
        found.add(
            Rule.SHAPE,
            f"KV is held in blocks of {schedule.block_tokens} tokens; the engine's have {engine.block_tokens}, "
            "token-level systems hold 1",
        )
        schedule = dataclasses.replace(schedule, block_tokens=engine.block_tokens)
    changes = _sound_runs(schedule, found)
    for table, columns in _TABLES.items():
        names = [f"{table}_{column}" for column in columns]
        values = dict(zip(columns, (getattr(schedule, name) for name in names), strict=True))
        keep = _sound_table(table, values, len(schedule.steps), found)
        if not keep.all():
            changes |= {name: getattr(schedule, name)[keep] for name in names}
    return dataclasses.replace(schedule, **changes)


def _fits_together(schedule: Schedule, found: Findings) -> bool:
    groups = {"the runs": (_RUNS, None), "the requests": (_BY_REQUEST, len(found.who))}
    groups |= {
        f"the {table} table": (tuple(f"{table}_{c}" for c in columns), None)
        for table, columns in _TABLES.items()
    }
    fine = True
    for what, (names, wanted) in groups.items():
        lengths = [len(getattr(schedule, name)) for name in names]
        if len(set(lengths)) > 1 or wanted not in (None, lengths[0]):
            listed = ", ".join(f"{name} {length:,}" for name, length in zip(names, lengths, strict=True))
            expected = "equal lengths" if wanted is None else f"{wanted:,} each"
            found.add(Rule.SHAPE, f"columns of {what} have {listed} rows; expected {expected}")
            fine = False
    return fine


def _sound_runs(schedule: Schedule, found: Findings) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    found.add_where(
        Rule.EMPTY_RUN,
        schedule.steps == 0,
        lambda run: {"run": run, "message": "the run has no steps; expected at least 1"},
    )
    for name, least in (("steps", 0), ("decode_seqs", 0), ("decode_context", 0), ("prefill_tokens", 0)):
        values = getattr(schedule, name)
        bad = (values < least) | (values > _MOST)

        def tell(run: int, name: str = name, values: Any = values) -> dict[str, Any]:
            return {"run": run, "message": f"{name} is {values[run]}; expected 0 to {_MOST:,}"}

        found.add_where(Rule.RANGE, bad, tell)
        if name == "steps":
            changes[name] = np.where(bad | (values == 0), 1, values).astype(np.int64)
        else:
            # A wrong positive count still says that the run decodes; a negative one says nothing.
            changes[name] = np.clip(values, 0, _MOST).astype(np.int64)
    return changes


def _sound_table(
    table: str, columns: dict[str, NDArray[np.int64]], runs: int, found: Findings
) -> NDArray[np.bool_]:
    """Give which rows of a table make sense."""
    request = columns["request"]
    first = columns.get("first_run", columns.get("run"))
    assert first is not None
    last = columns.get("last_run", first)

    def place(row: int) -> dict[str, Any]:
        return {"run": int(first[row]), "request": int(request[row])}

    unknown = (request < 0) | (request >= len(found.who))
    found.add_where(
        Rule.REQUEST,
        unknown,
        lambda row: {
            **place(row),
            "message": f"row {row} of the {table} table is about request {request[row]}; "
            f"the instance has {len(found.who):,}",
        },
    )
    outside = (first < 0) | (last >= runs) | (first > last)
    found.add_where(
        Rule.INDEX,
        outside,
        lambda row: {
            **place(row),
            "message": f"row {row} of the {table} table is about run {first[row]} to {last[row]} of {runs:,}",
        },
    )
    keep = ~(unknown | outside)
    for name, least in _LEAST.items():
        if name in columns:
            values = columns[name]
            bad = (values < least) | (values > _MOST)

            def tell(row: int, name: str = name, values: Any = values, least: int = least) -> dict[str, Any]:
                return {
                    **place(row),
                    "message": f"{table}_{name} is {values[row]}; expected {least} to {_MOST:,}",
                }

            found.add_where(Rule.RANGE, bad, tell)
            keep &= ~bad
    return keep

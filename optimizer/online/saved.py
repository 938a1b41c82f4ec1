"""A horizon as a JSON file, and back."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from optimizer.errors import InputError
from optimizer.online.flights import Flight
from optimizer.online.messages import Request, Step, real
from optimizer.online.state import DECODE, ENDED, PREFILL, WAITING, Entry
from optimizer.online.stats import Counts
from optimizer.problem.engine import Engine
from optimizer.problem.files import written_whole
from optimizer.problem.instance import read_json

if TYPE_CHECKING:
    from optimizer.online.horizon import RollingHorizon
    from optimizer.online.plan import Planner
    from optimizer.online.predictors import Predictor

SCHEMA = "optimizer/horizon@1"
H = TypeVar("H", bound="RollingHorizon")
_KEPT = (
    "serial", "born", "arrival_s", "due_s", "cap", "phase", "life", "ended", "key", "mu", "sigma", "most", "preemptions",
    "first_token_s",
)  # fmt: skip


def write(horizon: RollingHorizon, path: str | Path) -> None:
    """Write a horizon, whole or not at all."""
    loop, s = horizon.loop, horizon.loop.state
    document = {
        "schema": SCHEMA,
        "engine": horizon.engine.model_dump(mode="json"),
        "options": horizon.options,
        "now_s": horizon.now_s,
        "last_finish_s": loop.last_finish_s,
        "factor": loop.factor,
        "number": s.number,
        "serials": s.serials,
        "entries": [_entry(horizon, entry) for entry in s.entries.values()],
        "order_of_admission": [entry.serial for entry in s.running()],
        "flights": [
            {
                "step": dataclasses.asdict(flight.step),
                "chunks": [[e.serial, tokens, sampled] for e, tokens, sampled in flight.chunks],
                "expected_ticks": flight.expected_ticks,
                "void": sorted(flight.void),
            }
            for flight in loop.flights.all()
        ],
        "counts": dataclasses.asdict(loop.counts),
        "lengths": loop.lengths.to_document(),
        "rule": loop.rule.to_document(s),
        "settled": loop.settled,
    }
    with written_whole(path) as out:
        out.write(json.dumps(document, separators=(",", ":")) + "\n")


def _entry(horizon: RollingHorizon, entry: Entry) -> dict[str, Any]:
    return {
        **{name: getattr(entry, name) for name in _KEPT},
        "request": {
            f.name: value
            for f in dataclasses.fields(Request)
            if (value := getattr(entry.request, f.name)) != f.default
        },
        "known": horizon.loop.state.tokens(entry),
        "computed": horizon.loop.state.context(entry),
    }


def read(
    kind: type[H],
    path: str | Path,
    solver: Planner | str | None,
    predictors: Sequence[str | Predictor],
    engine_restarted: bool,
    now_s: float | None = None,
) -> H:
    """Make a horizon of what `write` wrote.

    Raises
    ------
    InputError
        If the file is no saved horizon.
    """
    if now_s is not None and not real(now_s):
        raise InputError(f"{now_s!r}; expected seconds, or None", field="now_s")
    document = read_json(path)
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(
            f'this is no saved horizon: expected an object with "schema": "{SCHEMA}"', file=str(path)
        )
    try:
        horizon = kind(
            Engine.model_validate(document["engine"]),
            solver=solver,
            predictors=predictors,
            **document["options"],
        )
        if now_s is not None:
            _shift(document, now_s - document["now_s"])
        _fill(horizon, document)
        if engine_restarted:
            _throw_all_out(horizon)
    except (KeyError, TypeError, ValueError, AssertionError, ValidationError) as error:
        raise InputError(
            f"this is no saved horizon: {type(error).__name__}: {error}", file=str(path)
        ) from None
    return horizon


def _shift(document: dict[str, Any], by_s: float) -> None:
    """Move every moment; what steps that are under way say of theirs stays, for they are known by it."""
    for name in ("now_s", "last_finish_s"):
        document[name] += by_s
    document["rule"]["credit"][1] += by_s
    for entry in document["entries"]:
        for name in ("arrival_s", "due_s", "key", "first_token_s"):
            if entry[name] is not None:
                entry[name] += by_s


def _fill(horizon: RollingHorizon, document: dict[str, Any]) -> None:
    loop, s = horizon.loop, horizon.loop.state
    loop.lengths.load(document["lengths"])
    horizon.now_s, loop.last_finish_s = float(document["now_s"]), float(document["last_finish_s"])
    loop.composed_s = horizon.now_s
    loop.factor = float(document["factor"])
    loop.settled = [str(name) for name in document["settled"]]
    loop.counts = loop.flights.counts = loop.advice.counts = Counts(**document["counts"])
    s.number = int(document["number"])
    for row in document["entries"]:
        s.serials = int(row["serial"])
        entry = s.add(Request(**row["request"]), float(row["arrival_s"]), int(row["cap"]))
        for name in _KEPT:
            setattr(entry, name, row[name])
        entry.phase = WAITING
        entry.known = int(row["known"])
    s.serials = int(document["serials"])
    rows = {row["serial"]: row for row in document["entries"]}
    for serial in document["order_of_admission"]:
        entry, row = s.by_serial[serial], rows[serial]
        entry.phase = PREFILL
        s.prefilling[serial] = entry
        s.move(entry, entry.known, int(row["computed"]))
        assert entry.phase in (PREFILL, DECODE, ENDED)
        if entry.phase == ENDED:
            entry.ended = int(row["ended"])
        loop.composer.enter(entry)
    for entry in s.entries.values():
        if entry.phase == WAITING:
            loop.order.line.push(entry)
    loop.rule.load(document["rule"], s)
    for row in document["flights"]:
        step = row["step"]
        made = Step(
            int(step["number"]),
            float(step["now_s"]),
            tuple((str(name), int(tokens)) for name, tokens in step["prefill"]),
            tuple(step["decode"]),
            tuple(step["preempt"]),
            step["source"],
        )
        chunks = [
            (s.by_serial[serial], int(tokens), bool(sampled))
            for serial, tokens, sampled in row["chunks"]
            if serial in s.by_serial
        ]
        loop.flights.add(Flight(made, chunks, int(row["expected_ticks"]), set(row["void"])))


def _throw_all_out(horizon: RollingHorizon) -> None:
    """The engine has lost its KV: what was under way counts as not done, and who ran waits in front of no one."""
    loop, s = horizon.loop, horizon.loop.state
    for flight in loop.flights.all():
        for entry in s.running():
            planned, _ = flight.part(entry)
            if planned:
                loop.flights.correct(flight, entry.request.id, 0)
    loop.flights.forget()
    for entry in s.running():
        loop.composer.leave(entry)
        s.preempt(entry)
        loop.order.line.push(entry)

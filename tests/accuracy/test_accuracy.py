"""The gate: no error of a simulation gets worse than what is on record."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from optimizer.capacity import engine_card
from optimizer.validation import validate
from tests.accuracy.record import HEAD, RUN_TARGETS, STEPS, TOLERANCE, entry, read, run_errors, step_errors

RECORD = read()
_validate = cache(validate)


def judge(found: dict[str, float | None], recorded: dict[str, dict[str, float]], what: str) -> None:
    """Fail on the figures that are beyond their limits, all of them at once."""
    worse = [
        f"{name}: {found[name]}, limit {kept['limit']:.2%}, on record {kept['error']:+.2%}"
        for name, kept in recorded.items()
        if found.get(name) is None or abs(found[name] or 0.0) > kept["limit"]
    ]
    assert not worse, f"{what} is further from the measurement than on record: {'; '.join(worse)}"


@pytest.mark.parametrize("run", RECORD["runs"])
def test_whole_runs(shared: Path, run: str) -> None:
    if not (shared / "h200" / f"run-{run}.json").is_file():
        pytest.skip(f"needs the measured run {run}: it is not in {shared / 'h200'}")
    found = {one.run: one for one in _validate(shared / "h200")}
    judge(run_errors(found[run]), RECORD["runs"][run], run)


@pytest.mark.parametrize("card", STEPS)
def test_step_times_held_out(card: str) -> None:
    found = step_errors(card)
    judge(dict(found), RECORD["steps"][card], f"the step time of {card}")
    stated = engine_card(card).fit_error["all"]
    for name, error in found.items():
        assert getattr(stated, name) == pytest.approx(error, abs=2e-4), f"the card states another {name}"


def test_the_record_follows_its_own_rule() -> None:
    for part in RECORD["runs"] | RECORD["steps"]:
        for name, kept in (RECORD["runs"] | RECORD["steps"])[part].items():
            assert entry(kept["error"], kept["target"]) == pytest.approx(kept, abs=1e-5), (part, name)
    for recorded in RECORD["runs"].values():
        assert {name: kept["target"] for name, kept in recorded.items()} == RUN_TARGETS
    assert f"{TOLERANCE:g}" in HEAD


def test_a_worse_error_is_seen() -> None:
    with pytest.raises(AssertionError, match="wall"):
        judge({"wall": 0.031}, {"wall": entry(0.01, 0.03)}, "a run")
    with pytest.raises(AssertionError, match="wall"):
        judge({"wall": -0.053}, {"wall": entry(0.05, 0.03)}, "a run")
    judge({"wall": -0.0515}, {"wall": entry(0.05, 0.03)}, "a run")

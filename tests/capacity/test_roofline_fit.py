"""The fit of the factors: that it finds planted ones, that its files are what it makes, and how good they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.capacity import Efficiency, StepClock, engine_card, gpu, list_engines
from optimizer.capacity import roofline_fit as fit
from optimizer.capacity.roofline_fit_points import Point, points, steady_step_s
from optimizer.capacity.roofline_fit_report import ESTIMATED, error_of, table, write_cards, write_gpu
from optimizer.capacity.roofline_fit_search import fit_positive
from optimizer.catalogue import catalogue_path
from optimizer.problem import StepTime

MODELS = catalogue_path("models")
ALL = points()


def chosen(holds: Callable[[Point], bool]) -> list[Point]:
    found = [point for point in ALL if holds(point)]
    assert found
    return found


def median_error(shown: list[Point]) -> float:
    return float(np.median([abs(point.ratio(gpu(point.gpu)) - 1) for point in shown]))


@pytest.fixture(scope="module")
def fitted() -> dict[str, Efficiency]:
    return fit.fit_all()


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=5), st.data())
def test_the_search_finds_what_products_and_quotients_tell(truth: list[float], data: st.DataObject) -> None:
    exact = np.log(truth)
    rows = np.vstack([np.eye(len(truth)), np.triu(np.ones((len(truth), len(truth))))])
    start = [data.draw(st.floats(value / 50, value * 50)) for value in truth]
    found = fit_positive(lambda x: rows @ (np.log(x) - exact), start)
    assert np.log(found) == pytest.approx(exact, abs=1e-3)


@given(
    seqs=st.integers(1, 64),
    prompt=st.integers(2, 500),
    output=st.integers(1, 500),
    cached=st.floats(0, 0.99),
    rates=st.tuples(st.floats(1e-4, 1), st.floats(1e-7, 1e-3), st.floats(1e-7, 1e-3)),
)
def test_where_step_times_are_affine_the_steady_state_is_exact(
    seqs: int, prompt: int, output: int, cached: float, rates: tuple[float, float, float]
) -> None:
    base, token, decode = rates
    model = StepTime.affine(base_s=base, per_prefill_token_s=token, per_decode_seq_s=decode)
    hits = int(cached * prompt)
    found = steady_step_s(StepClock(model), seqs, prompt, output, 10**6, hits)
    per_step = (
        seqs * (prompt - hits) / output
    )  # each step ends seqs / output requests, and as many prompts begin
    # Tokens of a step are whole numbers.
    assert found == pytest.approx(base + decode * seqs + token * per_step, rel=1e-9, abs=token)


def test_every_figure_says_where_it_is_from() -> None:
    for path in (MODELS / "measurements" / "public").glob("*.csv"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert lines[0].endswith(",source")
        assert all(line.rpartition(",")[2].strip() for line in lines)
        assert any(point.table == path.stem for point in ALL)


def test_what_is_judged_took_no_part_in_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [
        point if point.role == "fit" else replace(point, measured_s=9 * point.measured_s) for point in ALL
    ]
    centre = gpu("h200").efficiency
    assert centre is not None
    before = fit.fit_other("h100", centre)
    monkeypatch.setattr(fit, "points", lambda: wrong)
    assert fit.fit_other("h100", centre) == before


@pytest.mark.parametrize("factor", ["weight_read", "interconnect", "allreduce_s"])
def test_a_planted_factor_explains_its_figures(monkeypatch: pytest.MonkeyPatch, factor: str) -> None:
    centre = gpu("h200").efficiency
    assert centre is not None
    planted = centre.model_copy(update={factor: 0.6 * getattr(centre, factor)})
    figures = [
        replace(point, measured_s=point.measured_s * point.ratio(gpu("h100"), planted))
        for point in chosen(lambda p: p.gpu == "h100" and p.role == "fit")
    ]
    monkeypatch.setattr(fit, "points", lambda: figures)
    found = fit.fit_other("h100", centre)
    assert getattr(found, factor) < 0.85 * getattr(centre, factor)
    off = [abs(point.ratio(gpu("h100"), found) - 1) for point in figures]
    assert np.median(off) < 0.05
    assert np.median(off) < 0.5 * np.median([abs(point.ratio(gpu("h100"), centre) - 1) for point in figures])


def test_without_figures_a_gpu_has_the_factors_of_the_h200() -> None:
    centre = gpu("h200").efficiency
    assert centre is not None
    found = fit.fit_other("l40s", centre)
    assert {name: getattr(found, name) for name in fit.FACTORS} == pytest.approx(
        {name: getattr(centre, name) for name in fit.FACTORS}, rel=1e-6
    )


@pytest.mark.parametrize("name", ["h200", "h100", "a100-80", "a100-40"])
def test_the_catalogue_has_the_fitted_factors(fitted: dict[str, Efficiency], name: str) -> None:
    """`python -m optimizer.capacity.roofline_fit` makes them; more steps of the same engines move them little."""
    own = gpu(name).efficiency
    assert own is not None
    for factor in fit.FACTORS:
        assert getattr(own, factor) == pytest.approx(getattr(fitted[name], factor), rel=0.05), factor


@pytest.mark.parametrize("name", ["h200", "h100", "a100-80", "a100-40"])
def test_the_errors_in_the_catalogue_are_those_of_its_factors(tmp_path: Path, name: str) -> None:
    own = gpu(name)
    assert own.efficiency is not None
    write_gpu(name, own.efficiency, own.efficiency_source, fit.FACTORS, tmp_path)
    file = f"{name}.yaml"
    assert (tmp_path / file).read_text() == (MODELS / "gpu" / file).read_text()


def test_an_error_is_that_of_its_figures() -> None:
    device = gpu("h100")
    exact = [replace(p, measured_s=p.measured_s * p.ratio(device)) for p in chosen(lambda p: p.gpu == "h100")]
    shown = [
        replace(p, measured_s=p.measured_s / f) for p, f in zip(exact, (0.8, 0.9, 1.0, 1.3), strict=False)
    ]
    found = error_of(shown, device)
    assert (found.points, found.median, found.low, found.high) == (4, 0.15, -0.2, 0.3)


def test_estimated_cards_are_what_the_code_computes(tmp_path: Path) -> None:
    write_cards(tmp_path)
    for name in ESTIMATED:
        file = f"{name}.yaml"
        assert (tmp_path / file).read_text() == (MODELS / "engines" / file).read_text(), name
    shipped = {name for name in list_engines() if engine_card(name).origin == "estimated"}
    assert shipped == set(ESTIMATED)


def test_the_catalogue_s_table_is_that_of_its_factors() -> None:
    assert "\n".join(table()) in (MODELS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["h100", "h200"])
def test_time_per_token_of_current_engines_is_within_15_percent(name: str) -> None:
    """AIConfigurator's own median error on these figures is 15 %; the ones at 64 requests took no part in the fit."""
    tokens = chosen(
        lambda p: (
            p.gpu == name and p.table == "inferencex" and p.software == "vLLM" and "output" in p.quantity
        )
    )
    assert median_error(tokens) < 0.08
    held_out = [point for point in tokens if point.role == "check"]
    assert max(abs(point.ratio(gpu(name)) - 1) for point in held_out) < 0.16


@pytest.mark.parametrize(("name", "most"), [("h100", 0.16), ("h200", 0.12), ("a100-80", 0.09)])
def test_checks_against_vllm_stay_as_good_as_on_record(name: str, most: float) -> None:
    assert median_error(chosen(lambda p: p.gpu == name and p.role == "check")) < most

"""Fits what engines reach of a GPU's data sheet: `python -m optimizer.capacity.roofline_fit`.

Reads the step logs of `models/measurements/h200` and the published figures of `models/measurements/public`. Rewrites the
factors and their errors in `models/gpu`, the estimated cards in `models/engines`, and the table in `models/README.md`.

The estimates stand for vLLM of 2025 and later with asynchronous scheduling. Figures of older software and of other engines
are compared, never fitted: one set of factors cannot serve both.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from optimizer.capacity.catalogue import gpu, llm
from optimizer.capacity.roofline import roofline
from optimizer.capacity.roofline_fit_points import Point, points
from optimizer.capacity.roofline_fit_report import table, write_cards, write_gpu, write_table
from optimizer.capacity.roofline_fit_search import fit_positive
from optimizer.capacity.specifications import GPU, Efficiency
from optimizer.capacity.steplog import Floats, StepLog, predict, read_step_log, windows
from optimizer.catalogue import catalogue_path

FACTORS = (
    "matrix", "fp8_matrix", "fp8_few_matrix", "attention", "weight_read", "kv_read", "interconnect", "allreduce_s",
)  # fmt: skip
"""What is fitted. The others are small, and no figure tells them from these."""

MODEL_ERROR = 0.1
"""Relative error of an estimate with the best factors: what a misfit is measured in."""

PRIOR = 0.2
"""Relative difference from the H200's factor at which another GPU's counts as much of a misfit."""

LOG_POINTS = 8
"""A step log has thousands of rows of one engine: it counts like this many published figures."""

_SYNCHRONOUS = {"llama3.1-8b": "steps-llama3.1-8b-bf16.csv", "llama2-13b": "steps-llama2-13b-bf16.csv"}
_FP8_RUN, _WINDOW = "run-llama-65b-fp8-gsm8k-s200-steps.csv", 8
# What a synchronous step takes longer than one whose host time is hidden, to start from: a step that decodes, one that
# prefills, and for each request.
_HOST_S = (1e-3, 1e-3, 1e-5)


def fit_h200() -> Efficiency:
    """Fit the factors of the H200: to three engines measured step by step, and to published figures."""
    device, figures = gpu("h200"), _to_fit("h200")
    folder = catalogue_path("models") / "measurements" / "h200"
    logs = {name: read_step_log(folder / file) for name, file in _SYNCHRONOUS.items()}
    run = read_step_log(folder / _FP8_RUN)

    def misfit(values: Floats) -> Floats:
        rates, host_s = _efficiency(values), values[len(FACTORS) :]
        found = [_log_errors(figures, device, rates)]
        for name, log in logs.items():
            estimated = predict(roofline(llm(name), device, efficiency=rates), log) + _host(log) @ host_s
            found.append(_as_one_log(estimated / log.step_s))
        found.append(_as_one_log(_stretches(run, device, rates)))
        return np.concatenate(found)

    start = [getattr(Efficiency(), name) for name in FACTORS]
    return _rounded(fit_positive(misfit, [*start, *_HOST_S]))


def fit_other(name: str, h200: Efficiency) -> Efficiency:
    """Fit the factors of another GPU to published figures; what they do not tell stays near the H200's.

    Parameters
    ----------
    name
        Of the GPU.
    h200
        Its factors: the centre of a normal prior on the logarithm of each.
    """
    device, figures = gpu(name), _to_fit(name)
    centre = np.array([getattr(h200, factor) for factor in FACTORS])

    def misfit(values: Floats) -> Floats:
        errors = _log_errors(figures, device, _efficiency(values))
        return np.concatenate([errors, np.log(values / centre) * MODEL_ERROR / PRIOR])

    return _rounded(fit_positive(misfit, centre.tolist()))


def fit_all() -> dict[str, Efficiency]:
    """Fit every GPU that something is known of; the A100 40 GB is the same chip as the A100 80 GB."""
    h200 = fit_h200()
    a100 = fit_other("a100-80", h200)
    return {"h200": h200, "h100": fit_other("h100", h200), "a100-80": a100, "a100-40": a100}


def _to_fit(name: str) -> list[Point]:
    return [point for point in points() if point.gpu == name and point.role == "fit"]


def _efficiency(values: Iterable[float]) -> Efficiency:
    # A share of more than all, on the way of the search, would be no model.
    return Efficiency(**{name: min(float(value), 1.0) for name, value in zip(FACTORS, values, strict=False)})


def _rounded(values: Floats) -> Efficiency:
    """Two digits are known of a factor; a third is kept so that rounding adds nothing."""
    return _efficiency(float(f"{value:.3g}") for value in values[: len(FACTORS)])


def _log_errors(figures: Iterable[Point], device: GPU, rates: Efficiency) -> Floats:
    errors: Floats = np.log([point.ratio(device, rates) for point in figures])
    return errors


def _as_one_log(ratios: Floats) -> Floats:
    errors: Floats = np.log(ratios) * (LOG_POINTS / len(ratios)) ** 0.5
    return errors


def _host(log: StepLog) -> Floats:
    """Steps x `_HOST_S`: what each is multiplied by."""
    prefills = (log.work[:, 0] > 0).astype(np.float64)
    return np.stack([1 - prefills, prefills, log.work[:, 2] + log.work[:, 3]], axis=1)


def _stretches(run: StepLog, device: GPU, rates: Efficiency) -> Floats:
    """Estimated over measured time of stretches of the asynchronous run of LLaMA-65B in fp8."""
    first, _, measured_s = windows(run, _WINDOW)
    estimated = predict(roofline(llm("llama-65b"), device, dtype="fp8", efficiency=rates), run)
    totals: Floats = estimated[first[:, None] + np.arange(_WINDOW)].sum(axis=1)
    return totals / measured_s


_SOURCES = {
    "h200": "fitted to three engines measured on an H200 and to published figures (models/measurements)",
    "h100": "fitted to published figures (models/measurements/public); where they tell nothing, as on the H200",
    "a100-80": "fitted to published figures (models/measurements/public); where they tell nothing, as on the H200",
    "a100-40": "those of a100-80, the same chip; nothing was measured on this one",
}


def main() -> None:
    """Fit, rewrite the files, and print the table."""
    for name, rates in fit_all().items():
        write_gpu(name, rates, _SOURCES[name], FACTORS)
        print(f"{name:8s}", *(f"{factor} {getattr(rates, factor):.3g}" for factor in FACTORS))
    write_cards()
    write_table()
    print(*table(), sep="\n")


if __name__ == "__main__":
    main()

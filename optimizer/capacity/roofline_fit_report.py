"""How wrong the estimates are against published figures, and the files that say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from optimizer.capacity.cards import EngineCard, estimated_card
from optimizer.capacity.catalogue import forget, gpu
from optimizer.capacity.roofline_fit_points import Point, Role, points
from optimizer.capacity.specifications import GPU, Efficiency, EstimateError
from optimizer.capacity.yaml_files import write_mapping
from optimizer.catalogue import catalogue_path
from optimizer.problem.files import written_whole

ESTIMATED = (
    "llama3.1-8b@h100", "llama3.1-8b-fp8@h100", "llama3.1-8b@a100-80",
    "llama3.1-70b-fp8-tp2@h100", "llama3.1-70b-tp4@h100", "llama3.1-70b-tp8@h100",
    "llama3.1-70b-tp2@h200", "llama3.1-70b-fp8-tp2@h200", "llama3.1-70b-tp4@a100-80",
    "llama2-70b-tp4@h100", "llama2-70b-tp4@a100-80", "llama3.1-405b-fp8-tp8@h200",
    "qwen2.5-7b@a100-80", "qwen2.5-32b-tp2@h100", "qwen2.5-32b@h200", "qwen2.5-72b-tp4@h100",
    "mixtral-8x7b-tp2@h100", "qwen3-30b-a3b@h200",
)  # fmt: skip
"""Engines whose estimated cards are shipped, to be looked at and copied; every other name is estimated when asked for."""

_CURRENT: tuple[Role, ...] = ("fit", "check")
_MARKERS = ("<!-- estimates -->", "<!-- end of estimates -->")
_GENERATED = "# From here on written by `python -m optimizer.capacity.roofline_fit`"


def error_of(shown: Sequence[Point], device: GPU) -> EstimateError:
    """Compare estimates with figures, one or more, of engines on a GPU; with the factors that the GPU has."""
    errors = np.array([point.ratio(device) for point in shown]) - 1
    return EstimateError(
        what=_what(shown),
        points=len(shown),
        fitted=sum(point.role == "fit" for point in shown),
        median=round(float(np.median(np.abs(errors))), 3),
        low=round(float(errors.min()), 3),
        high=round(float(errors.max()), 3),
    )


def _what(shown: Sequence[Point]) -> str:
    said = []
    for software in dict.fromkeys(point.software for point in shown):
        own = [point for point in shown if point.software == software]
        quantities = ", ".join(dict.fromkeys(point.quantity for point in own))
        engines = ", ".join(dict.fromkeys(_engine(point) for point in own))
        said.append(f"{software}: {quantities} ({engines})")
    unsure = " on boards that may be PCIe" if shown[0].role == "unknown board" else ""
    return "; ".join(said) + unsure


def _engine(point: Point) -> str:
    return f"{point.llm}{'-fp8' if point.dtype == 'fp8' else ''}-tp{point.tp}"


def write_gpu(
    name: str, rates: Efficiency, source: str, factors: Iterable[str], folder: Path | None = None
) -> None:
    """Put factors into a GPU's file, and how wrong estimates with them are.

    Parameters
    ----------
    name
        Of the catalogue.
    rates, factors
        The factors, and which of them to write.
    source
        What they were fitted to.
    folder
        Where to write; the catalogue if None.
    """
    kept = (_gpus() / f"{name}.yaml").read_text(encoding="utf-8").partition(_GENERATED)[0]
    device = gpu(name).model_copy(update={"efficiency": rates})
    shown = [point for point in points() if point.gpu == name]
    groups = {role: [p for p in shown if p.role == role] for role in dict.fromkeys(p.role for p in shown)}
    current = [point for point in shown if point.role in _CURRENT]
    values: dict[str, Any] = {
        "efficiency": {factor: getattr(rates, factor) for factor in factors},
        "efficiency_source": source,
    }
    if current:
        values["estimate_error"] = error_of(current, device).model_dump()
    others = [error_of(group, device).model_dump() for role, group in groups.items() if role not in _CURRENT]
    if others:
        values["other_errors"] = others
    with written_whole((folder or _gpus()) / f"{name}.yaml") as out:
        out.write(f"{kept}{_GENERATED}\n")
        yaml.safe_dump(values, out, sort_keys=False, width=110, default_flow_style=None)


def write_cards(folder: Path | None = None) -> None:
    """Write the cards of `ESTIMATED`, with the factors in the catalogue; into the catalogue if no folder is given."""
    forget()
    for name in ESTIMATED:
        path = (folder or catalogue_path("models") / "engines") / f"{name}.yaml"
        write_mapping(path, _document(estimated_card(name)))


def _document(card: EngineCard) -> Mapping[str, Any]:
    return card.model_dump(mode="json", exclude_defaults=True)


def table() -> list[str]:
    """Give the lines of the Markdown table of `models/README.md`: by GPU, kind of figures, and GPUs per engine."""
    lines = [
        "| GPU | against | GPUs of the engine | figures (fitted) | median | range |",
        "|---|---|---:|---:|---:|---:|",
    ]
    every = points()
    for name in dict.fromkeys(point.gpu for point in every):
        device = gpu(name)
        for label, roles in _LABELS.items():
            group = [point for point in every if point.gpu == name and point.role in roles]
            sizes = sorted({point.tp for point in group})
            for size in sizes:
                error = error_of([point for point in group if point.tp == size], device)
                fitted = f" ({error.fitted})" if error.fitted else ""
                lines.append(
                    f"| {name} | {label} | {size} | {error.points}{fitted} | {100 * error.median:.0f} % "
                    f"| {100 * error.low:+.0f} to {100 * error.high:+.0f} % |"
                )
    return lines


_LABELS: dict[str, tuple[Role, ...]] = {
    "vLLM": _CURRENT,
    "TensorRT-LLM": ("other engine",),
    "vLLM, board not known": ("unknown board",),
    "engines of 2023 and 2024": ("older",),
}


def write_table() -> None:
    """Put the table into `models/README.md`, between its markers."""
    path = catalogue_path("models") / "README.md"
    before, _, rest = path.read_text(encoding="utf-8").partition(_MARKERS[0])
    after = rest.partition(_MARKERS[1])[2]
    with written_whole(path) as out:
        out.write("\n".join([before + _MARKERS[0], *table(), _MARKERS[1] + after]))


def _gpus() -> Path:
    return catalogue_path("models") / "gpu"

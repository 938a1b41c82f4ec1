"""How far the step times of a run can be trusted: where they come from, their error, and their range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.capacity import EngineCard, EstimateError, engine_card, gpu, list_engines
from optimizer.errors import InputError
from optimizer.problem import Engine, Schedule
from optimizer.problem.columns import Floats

_HAIR = 0.02
"""How far beyond a range a sum may go before it counts as beyond."""

_ORIGINS = {
    "estimated": "estimated from specifications",
    "given": "step times as given, without a card",
}


def card_of(engine: Engine) -> EngineCard | None:
    """Find the card of the catalogue that an engine's step times are from; None: it has none.

    >>> from optimizer.capacity import engine
    >>> card_of(engine("llama3.1-8b@h200", kv_blocks=100)).origin
    'measured'
    """
    if engine.name not in list_engines():
        return None
    card = engine_card(engine.name)
    return card if card.step_time == engine.step_time else None


def estimate_error(engine: Engine, card: EngineCard | None = None) -> EstimateError | None:
    """Find how wrong estimates for an engine's GPU were; None: it is no estimate, or never checked on this GPU.

    Parameters
    ----------
    engine
        Named as in the catalogue: an estimate under another name is not recognised.
    card
        Where it is none of the catalogue.

    Examples
    --------
    >>> from optimizer.capacity import engine
    >>> estimate_error(engine("llama3.1-70b-tp8@a100-80")).points
    6
    >>> estimate_error(engine("llama3.1-8b@l40s")) is None
    True
    """
    card = card or card_of(engine)
    if card is not None:
        return card.estimate_error
    if engine.origin != "estimated":
        return None
    try:
        return gpu(engine.name.rpartition("@")[2]).estimate_error
    except InputError:
        return None


def describe_engine(engine: Engine, schedule: Schedule, card: EngineCard | None = None) -> dict[str, Any]:
    """Give the JSON form of an engine in a summary.

    Parameters
    ----------
    engine, schedule
        As simulated.
    card
        Where it is none of the catalogue.

    Returns
    -------
    dict
        `name`, `origin`, `source`; `fit_error`, as on the card, or None where it states none; `estimate_error`, of
        an estimate on a GPU where some were checked, else None; and `beyond`, None where the card states no range,
        else `share`, the share of busy time spent beyond it, and `sums`, with `most` and `covered` for each sum of a
        step that left it by more than 2 %.
    """
    card = card or card_of(engine)
    estimated = estimate_error(engine, card)
    return {
        "name": engine.name,
        "origin": engine.origin,
        "source": engine.source,
        "fit_error": {k: e.model_dump() for k, e in card.fit_error.items()}
        if card and card.fit_error
        else None,
        "estimate_error": estimated.model_dump() if estimated else None,
        "beyond": _beyond(schedule, card.covers) if card and card.covers else None,
    }


def trust(engine: Mapping[str, Any]) -> str:
    """Say in a few words where the step times of a described engine come from, and their error.

    >>> trust({"origin": "measured", "fit_error": {"all": {"median": 0.0253, "steps": 1183}}})
    'measured; median error of a step 2.5 %'
    >>> checked = {"points": 6, "fitted": 4, "median": 0.06, "low": -0.1, "high": 0.02}
    >>> trust({"origin": "estimated", "estimate_error": checked})
    'estimated from specifications; of 6 figures of this GPU (4 fitted): median error 6 %, -10 to +2 %'
    >>> trust({"origin": "estimated"})
    'estimated from specifications, never checked on this GPU'
    """
    said = _ORIGINS.get(engine["origin"], engine["origin"])
    if engine["origin"] == "estimated":
        checked = engine.get("estimate_error")
        return f"{said}; {estimated_error(checked)}" if checked else f"{said}, never checked on this GPU"
    error = median_error(engine.get("fit_error") or {})
    if error:
        where = "" if error[1] == "all" else f" ({error[1]})"
        return f"{said}; median error of a step {100 * error[0]:.2g} %{where}"
    return f"{said}; the card states no error" if engine["origin"] in ("measured", "fitted") else said


def estimated_error(error: Mapping[str, Any]) -> str:
    """Say in a few words how wrong estimates were."""
    return (
        f"of {error['points']} figures of this GPU ({error['fitted']} fitted): median error "
        f"{100 * error['median']:.2g} %, {100 * error['low']:+.2g} to {100 * error['high']:+.2g} %"
    )


def median_error(fit_error: Mapping[str, Mapping[str, Any]]) -> tuple[float, str] | None:
    """Give the median error of a step and the regime that it is of: all steps, else the worst regime."""
    if not fit_error:
        return None
    regime = (
        "all" if "all" in fit_error else max(fit_error, key=lambda name: float(fit_error[name]["median"]))
    )
    return float(fit_error[regime]["median"]), regime


def warning(engine: Mapping[str, Any]) -> str | None:
    """Say which sums of a step left the range that the card covers; None: none did, or none is known."""
    beyond = engine.get("beyond")
    if not beyond or not beyond["sums"]:
        return None
    sums = ", ".join(
        f"{name} up to {of['most']:,.0f} ({of['covered']:,.0f} covered)"
        for name, of in beyond["sums"].items()
    )
    return (
        f"beyond what was measured: {sums}; {100 * beyond['share']:.2g} % of busy time rests on extrapolation"
    )


def _beyond(schedule: Schedule, covers: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    busy_s = schedule.end_s - schedule.start_s
    total_s = float(busy_s.sum())
    sums: dict[str, dict[str, float]] = {}
    share = np.zeros(len(busy_s))
    first, last = _sums(schedule, last=False), _sums(schedule, last=True)
    for name, (_, covered) in covers.items():
        if name not in last or not len(busy_s) or last[name].max() <= covered * (1 + _HAIR):
            continue
        sums[name] = {"most": float(last[name].max()), "covered": covered}
        # Within a run a sum only grows, nearly in a straight line.
        grown = last[name] - first[name]
        over = (last[name] - covered) / np.where(grown > 0, grown, 1.0)
        share = np.maximum(share, np.clip(over, 0.0, 1.0))
    return {"share": float(share @ busy_s) / total_s if total_s > 0 else 0.0, "sums": sums}


def _sums(s: Schedule, *, last: bool) -> dict[str, Floats]:
    """By run: the sums that the time of its first, or its last, step depends on."""
    before = s.steps - 1 if last else np.zeros_like(s.steps)
    tokens = s.chunk_tokens.astype(np.float64)
    context = s.chunk_context + before[s.chunk_run] * tokens

    def by_run(amounts: NDArray[Any]) -> Floats:
        return np.bincount(s.chunk_run, amounts, minlength=len(s.steps)).astype(np.float64)

    return {
        "prefill_tokens": s.prefill_tokens.astype(np.float64),
        "prefill_attention": by_run(tokens * context + tokens * (tokens + 1) / 2),
        "prefill_seqs": by_run(np.ones_like(tokens)),
        "prefill_context": by_run(context + tokens),
        "decode_seqs": s.decode_seqs.astype(np.float64),
        "decode_context": (s.decode_context + before * s.decode_seqs).astype(np.float64),
    }

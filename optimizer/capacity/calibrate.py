"""From a step log of an engine to its card: fit, judge on steps held out, say what the log does not tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optimizer.capacity.cards import EngineCard
from optimizer.capacity.catalogue import gpu as gpu_of
from optimizer.capacity.catalogue import llm as llm_of
from optimizer.capacity.coverage import gaps
from optimizer.capacity.fit import PHYSICAL, Group, covers, drawn, fit_regimes
from optimizer.capacity.geometry import kv_blocks as blocks_of
from optimizer.capacity.host import fit_loop, with_loop
from optimizer.capacity.judge import Judged, judge
from optimizer.capacity.roofline import roofline
from optimizer.capacity.specifications import BYTES, Dtype
from optimizer.capacity.steplog import StepLog, windows
from optimizer.capacity.yaml_files import validated
from optimizer.errors import InputError
from optimizer.problem.engine import Engine, StepTime

WINDOW = 10
"""Steps of an asynchronous log whose total is compared: a single one may be stamped a step late."""
HELD_OUT = 0.2
_PER_COEFFICIENT = 3
"""Measurements that a coefficient needs at the least."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a step log tells of an engine.

    Attributes
    ----------
    step_time
        The model. Of a synchronous engine with what it needs between two steps.
    asynchronous
        Whether the engine composed a step while another ran; the model is then of such steps.
    steps, fitted
        Steps of the log; steps, or stretches of `WINDOW` steps, that the model was fitted to.
    judged
        Those held out, beside the model.
    covers
        For each quantity of a step the range that was seen.
    estimated
        Phases whose times are not from the log, but from specifications.
    """

    step_time: StepTime
    asynchronous: bool
    steps: int
    fitted: int
    judged: Judged
    covers: dict[str, tuple[float, float]]
    estimated: tuple[str, ...]


def is_asynchronous(log: StepLog) -> bool:
    """Whether most steps were begun before the one before them was done."""
    same = log.workload[1:] == log.workload[:-1]
    return bool(same.any() and (log.start_s[1:] < log.completed_s[:-1])[same].mean() > 0.5)


def calibrate(
    log: StepLog, *, asynchronous: bool | None = None, otherwise: StepTime | None = None, seed: int = 0
) -> Calibration:
    """Fit a step-time model to four fifths of a log and judge it on the rest.

    Parameters
    ----------
    log
        Of one engine.
    asynchronous
        How the engine scheduled; None finds out.
    otherwise
        Step times of phases that the log does not have; without it, such a log is an error.
    seed
        Of what is held out, and of the fit.

    Raises
    ------
    InputError
        If there are too few steps (the message says how many are needed).

    Notes
    -----
    The form is `fit.PHYSICAL`, with fewer pieces where steps are few. Decode-only steps share a form with
    the others where there are too few of either. A synchronous engine is judged by single steps, from dispatch to
    tokens; what its host needs between two of them (`fit_loop`) is then added.
    """
    asynchronous = is_asynchronous(log) if asynchronous is None else asynchronous
    window = WINDOW if asynchronous else None
    labels = log.workload if window is None else log.workload[windows(log, window)[0]]
    out = drawn(labels, HELD_OUT, seed)
    if not out.any() and len(out):
        out[np.random.default_rng(seed).integers(len(out))] = True
    # Steps are left out before the fit; stretches must stay in their place to be cut the same way.
    fitted = log[~out] if window is None else log
    groups = _form(fitted, int((~out).sum()), window, len(log))
    regimes = fit_regimes(fitted, groups, window=window, held_out=out if window else None, seed=seed)
    missing: tuple[str, ...] = ()
    if groups[-1].phase == "decode" or not (log.phase != "decode").any():
        if otherwise is None:
            raise InputError("holds too few steps that prefill to fit their times; measure some")
        missing = ("prefill", "mixed")
        decode = [r.model_copy(update={"phase": "decode"}) for r in regimes]
        regimes = (*decode, *(r for r in otherwise.regimes if r.phase != "decode"))
    model = StepTime(regimes=regimes)
    return Calibration(
        model if asynchronous else with_loop(model, *fit_loop(log)),
        asynchronous,
        len(log),
        int((~out).sum()),
        judge(model, log, window, out),
        covers(log),
        missing,
    )


def _form(log: StepLog, measurements: int, window: int | None, steps: int) -> tuple[Group, ...]:
    """Choose groups and pieces that the measurements can bear."""
    decode, other = PHYSICAL
    if window is None:
        decodes = int((log.phase == "decode").sum())
        own, rest = _pieces(decode, decodes), _pieces(other, len(log) - decodes)
        if own and rest:
            return replace(decode, pieces=own), replace(other, pieces=rest)
        if own and decodes == len(log):
            return (replace(decode, pieces=own),)
    together = _pieces(other, measurements)
    if together:
        return (replace(other, pieces=together),)
    coefficients = replace(other, pieces=1).coefficients
    least = -int(-_PER_COEFFICIENT * coefficients / (1 - HELD_OUT) // 1) * (window or 1)
    raise InputError(
        f"holds {steps:,} steps; about {least} are needed: {_PER_COEFFICIENT} "
        f"{f'stretches of {window} steps ' if window else ''}for each of {coefficients} coefficients, and a fifth to judge by"
    )


def _pieces(group: Group, measurements: int) -> int:
    """Give the most pieces that so many measurements bear; 0: not even one."""
    return next(
        (
            n
            for n in range(group.pieces, 0, -1)
            if measurements >= _PER_COEFFICIENT * replace(group, pieces=n).coefficients
        ),
        0,
    )


def calibrated_card(
    log: StepLog,
    *,
    llm: str,
    gpu: str,
    tp: int = 1,
    dtype: Dtype | None = None,
    name: str | None = None,
    kv_blocks: int | None = None,
    asynchronous: bool | None = None,
    seed: int = 0,
    source: Sequence[str] = (),
    software: str = "vLLM",
    **limits: Any,
) -> tuple[EngineCard, Calibration, list[str]]:
    """Make the card of an engine from a log of its steps.

    Parameters
    ----------
    log, asynchronous, seed
        As in `calibrate`.
    llm, gpu, tp, dtype
        What runs where; names of the catalogue, or paths. The weights' own type where none is given.
    name
        Of the card; `<llm>[-fp8][-tp<n>]@<gpu>` if None.
    kv_blocks
        Usable KV blocks; estimated from the memory if None.
    source, software
        What the card says of its origin.
    **limits
        `max_num_batched_tokens`, `max_num_seqs`, `block_tokens`.

    Returns
    -------
    tuple
        The card, how it came about, and what to be wary of, a sentence each.

    Raises
    ------
    InputError
        If LLM or GPU are unknown, the model does not fit, or the log is too small.
    """
    model, device = llm_of(llm), gpu_of(gpu)
    dtype = dtype or model.dtype
    estimated_blocks = blocks_of(model, device, tp=tp, dtype=dtype, **limits)
    otherwise = roofline(model, device, tp, dtype)
    try:
        made = calibrate(log, asynchronous=asynchronous, otherwise=otherwise, seed=seed)
    except InputError as error:
        raise InputError(error.problem, file=", ".join(source) or None) from None
    suffix = ("-fp8" if BYTES[dtype] == 1 else "") + (f"-tp{tp}" if tp > 1 else "")
    what = f"totals of {WINDOW} steps" if made.asynchronous else "steps"
    notes = [
        f"Fitted to {made.fitted:,} {what} of {'a' if made.asynchronous else ''}synchronous scheduling; "
        f"fit_error is that of {len(made.judged):,} others, held out by workload with seed {seed}."
    ]
    if kv_blocks is None:
        notes.append("kv_blocks is estimated from the memory; the engine's own log says how many it has.")
    values: dict[str, Any] = {
        "name": name or f"{model.name}{suffix}@{device.name}",
        "llm": model.name,
        "gpu": device.name,
        "tp": tp,
        "dtype": dtype,
        "software": software,
        "origin": "fitted" if made.estimated else "measured",
        "source": ", ".join(source) or "a step log",
        "measured": f"{made.steps:,} steps",
        "kv_blocks": estimated_blocks if kv_blocks is None else kv_blocks,
        "max_model_len": model.max_model_len,
        "async_scheduling": made.asynchronous,
        "covers": made.covers,
        "fit_error": made.judged.by_phase(),
        "step_time": made.step_time,
        **limits,
    }
    card = validated(EngineCard, values)
    # What a card alone may say, an engine may not: more seats than tokens.
    validated(Engine, {field: getattr(card, field) for field in Engine.model_fields})
    warnings = gaps(log, made.judged.by_phase(), card, made.estimated)
    return card.model_copy(update={"notes": " ".join([*notes, *warnings])}), made, warnings


def card_document(card: EngineCard) -> dict[str, Any]:
    """Give the form in which a card is stored: without coefficients of zero, ranges in whole numbers."""
    document = card.model_dump(mode="json", exclude_none=True)
    document["covers"] = {name: [int(low), int(high)] for name, (low, high) in card.covers.items()}
    document["step_time"] = card.step_time.model_dump(exclude_defaults=True)
    return document

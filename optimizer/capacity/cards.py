"""Engine cards: step times and KV blocks of one LLM on one kind of GPU, with how they were found."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field

from optimizer.capacity.catalogue import gpu, list_gpus, list_llms, llm, names, near
from optimizer.capacity.geometry import kv_blocks
from optimizer.capacity.roofline import estimate
from optimizer.capacity.specifications import BYTES, Dtype, EstimateError
from optimizer.capacity.yaml_files import read_model, validated
from optimizer.catalogue import catalogue_path
from optimizer.errors import InputError
from optimizer.problem.engine import Engine, Frozen, StepTime


class FitError(Frozen):
    """How far the step times of a card are from the measured ones, in one regime.

    Attributes
    ----------
    steps
        Steps compared; held out of the fit where the card's notes say so.
    median, mean
        Of the absolute relative error of a step.
    total
        Signed relative error of the sum of all steps.
    """

    steps: int = Field(ge=1)
    median: float = Field(ge=0)
    mean: float = Field(ge=0)
    total: float


class EngineCard(Frozen):
    """What `models/engines/*.yaml` holds.

    Attributes
    ----------
    name
        `<llm>[-fp8][-tp<n>]@<gpu>`, with a suffix for another serving engine: `opt-13b-tp1@a100-80-distserve`.
    llm, gpu, tp, dtype
        What runs where; names of the catalogue.
    software
        The serving engine and its version.
    origin, source, measured, notes
        Measured or estimated; by whom; how and when; what to know before trusting it.
    kv_blocks, block_tokens, max_num_batched_tokens, max_num_seqs, max_model_len, prefix_caching, async_scheduling,
    preemption
        As in `Engine`.
    fitted_runs
        Whole runs that coefficients were fitted to (`run-<this>.json`): a small error on one of them proves less.
    covers
        For each quantity of a step the range (least, most) that was seen; outside, the card extrapolates.
    fit_error
        By regime (`decode`, `prefill`, `mixed`, `all`).
    estimate_error
        How wrong estimates for this GPU were where they could be checked; None: never checked, or no estimate.
    step_time
        Regimes of pieces; coefficients in seconds per unit.
    """

    name: str = Field(min_length=1)
    llm: str
    gpu: str
    tp: int = Field(1, ge=1)
    dtype: Dtype
    software: str
    origin: Literal["measured", "fitted", "estimated", "given"]
    source: str
    measured: str = ""
    notes: str = ""
    kv_blocks: int = Field(ge=1)
    block_tokens: int = Field(16, ge=1)
    max_num_batched_tokens: int = Field(8192, ge=1)
    max_num_seqs: int = Field(256, ge=1)
    max_model_len: int | None = Field(None, ge=2)
    prefix_caching: bool = False
    async_scheduling: bool = False
    preemption: Literal["recompute", "none"] = "recompute"
    fitted_runs: tuple[str, ...] = ()
    covers: dict[str, tuple[float, float]] = Field(default_factory=dict)
    fit_error: dict[str, FitError] = Field(default_factory=dict)
    estimate_error: EstimateError | None = None
    step_time: StepTime

    def engine(self) -> Engine:
        """Give the engine that the card describes."""
        own = {field: getattr(self, field) for field in Engine.model_fields}
        return Engine.model_validate(own)


def list_engines() -> list[str]:
    """Name every engine card of the catalogue, sorted; `engine` knows every LLM on every GPU besides.

    >>> "llama3.1-8b@h200" in list_engines()
    True
    """
    return names("engines")


def engine_card(name: str) -> EngineCard:
    """Read a card by its name in the catalogue, or by the path of a `.yaml` file.

    Raises
    ------
    InputError
        If there is none (the message lists near names), or the file is wrong (file and field).

    Examples
    --------
    >>> engine_card("llama3.1-8b@h200").software
    'vLLM 0.26.0'
    """
    if name.endswith((".yaml", ".yml")):
        return read_model(EngineCard, Path(name))
    if name not in list_engines():
        raise InputError(f"no engine card {name!r}; {near(name, list_engines())}", field="engine")
    return _card(name)


@cache
def _card(name: str) -> EngineCard:
    return read_model(EngineCard, catalogue_path("models") / "engines" / f"{name}.yaml")


def engine(name: str, *, tp: int | None = None, dtype: Dtype | None = None, **overrides: Any) -> Engine:
    """Give an engine by name: its card if it has one, else the roofline estimate.

    Parameters
    ----------
    name
        `<llm>[-fp8][-tp<n>]@<gpu>`, any case: `llama3.1-8b@h200`, `llama3.1-70b-tp4@h100`,
        `llama-65b-fp8@h200`; the name of any card (`list_engines()`); or the path of a card of your own
        (`mine.yaml`). In place of the LLM stands, if you like, the path of its config.json:
        `./config.json@h100`.
    tp, dtype
        The same as the suffixes in the name; given twice, they must agree.
    **overrides
        Fields of `Engine` that differ: `kv_blocks=2000`, `max_num_batched_tokens=512`, ...

    Raises
    ------
    InputError
        If LLM or GPU are unknown (with near names), the model does not fit, or an override is wrong.

    Examples
    --------
    >>> engine("llama3.1-8b@h200", max_num_batched_tokens=512).origin
    'measured'
    >>> engine("llama3.1-70b-tp4@h100").origin
    'estimated'
    """
    found = _base(name, tp, dtype, overrides)
    unknown = sorted(set(overrides) - set(Engine.model_fields))
    if unknown:
        raise InputError(f"no such field; {near(unknown[0], Engine.model_fields)}", field=unknown[0])
    return validated(Engine, {**dict(found), **overrides}) if overrides else found


def estimated_card(name: str) -> EngineCard:
    """Give the card of an engine that nobody measured: what `engine` estimates, and how wrong such estimates were.

    Parameters
    ----------
    name
        As for `engine`, without the path of a card.

    Raises
    ------
    InputError
        If LLM or GPU are unknown (with near names), or the model does not fit.

    Examples
    --------
    >>> estimated_card("llama3.1-8b@l40s").estimate_error is None  # never checked on this GPU
    True
    """
    model, device, tp, dtype = _parts(name, None, None)
    _see_that_both_are_known(name, model, device)
    shape, hardware = llm(model), gpu(device)
    found = estimate(shape, hardware, tp=tp, dtype=dtype, name=name)
    factors = hardware.efficiency_source or "those of an H200, as nothing is known of this GPU's"
    checked = "see estimate_error" if hardware.estimate_error else "never checked on this GPU"
    return EngineCard(
        llm=shape.name,
        gpu=hardware.name,
        tp=tp,
        dtype=dtype or shape.dtype,
        software=ESTIMATED_SOFTWARE,
        notes=f"Nothing of this engine was measured. Shares of the data sheet: {factors}. How wrong: {checked}.",
        estimate_error=hardware.estimate_error,
        **{field: getattr(found, field) for field in Engine.model_fields},
    )


ESTIMATED_SOFTWARE = "vLLM of 2025 and later, asynchronous scheduling"
"""What the estimates stand for; older engines are slower."""


def _base(name: str, tp: int | None, dtype: Dtype | None, limits: dict[str, Any]) -> Engine:
    # Only what is a size goes into the estimate; a wrong one is named when the engine is validated.
    sizing = {key: limits[key] for key in _SIZING if isinstance(limits.get(key), int) and limits[key] > 0}
    # A path may hold an @ of its own: `models/engines/llama3.1-8b@h200.yaml`.
    if name.endswith((".yaml", ".yml")) and ("@" not in name or Path(name).is_file()):
        return engine_card(name).engine()
    if name.lower() in list_engines() and tp is None and dtype is None:
        return _sized(engine_card(name.lower()), sizing)
    model, device, tp, dtype = _parts(name, tp, dtype)
    kind = f"{model}-fp8" if dtype and BYTES[dtype] == 1 else model
    spellings = [f"{kind}-tp{tp}@{device}", *([f"{kind}@{device}"] if tp == 1 else [])]
    for spelling in spellings:
        if spelling in list_engines():
            return _sized(engine_card(spelling), sizing)
    _see_that_both_are_known(name, model, device)
    return estimate(llm(model), gpu(device), tp=tp, dtype=dtype, name=spellings[-1], **sizing)


def _sized(card: EngineCard, sizing: dict[str, Any]) -> Engine:
    """Give the engine of a card; blocks that were estimated are estimated again for the limits asked for."""
    if card.origin != "estimated" or not sizing:
        return card.engine()
    blocks = kv_blocks(llm(card.llm), gpu(card.gpu), tp=card.tp, dtype=card.dtype, **sizing)
    return card.engine().replace(kv_blocks=blocks)


def _parts(name: str, tp: int | None, dtype: Dtype | None) -> tuple[str, str, int, Dtype | None]:
    """Take `<llm>[-fp8][-tp<n>]@<gpu>` apart: LLM, GPU, GPUs of a group, type of the weights."""
    model, at, device = name.rpartition("@")
    if not at:
        raise InputError(f"expected <llm>@<gpu>, not {name!r}; {near(name, list_engines())}", field="engine")
    if not model.endswith((".json", ".yaml")):
        model, tp, dtype = _suffixes(model.lower(), tp, dtype)
    device = device if device.endswith(".yaml") else device.lower()
    return model, device, 1 if tp is None else tp, dtype


_SIZING = ("max_num_batched_tokens", "max_num_seqs", "block_tokens")


def _suffixes(model: str, tp: int | None, dtype: Dtype | None) -> tuple[str, int | None, Dtype | None]:
    """Take `-fp8` and `-tp4` off the name of an LLM, in either order."""
    while model not in list_llms():
        match = re.fullmatch(r"(.+)-(?:tp(\d+)|(bf16|fp16|fp8))", model)
        if not match:
            break
        model = match[1]
        if match[2]:
            tp = _same("tp", tp, int(match[2]))
        else:
            kind = next(one for one in get_args(Dtype) if one == match[3])
            dtype = _same("dtype", dtype, kind)
    return model, tp, dtype


def _same(field: str, given: Any, named: Any) -> Any:
    if given is not None and given != named:
        raise InputError(f"the name says {named} and the argument {given}; drop one of them", field=field)
    return named


def _see_that_both_are_known(name: str, model: str, device: str) -> None:
    unknown = [
        f"no {word} {given!r} ({near(given, known)})"
        for word, given, known in (("LLM", model, list_llms()), ("GPU", device, list_gpus()))
        if given not in known and not given.endswith((".json", ".yaml"))
    ]
    if unknown:
        close = get_close_matches(name.lower(), list_engines(), n=3)
        cards = f"; engine cards with a near name: {', '.join(close)}" if close else ""
        raise InputError(f"no engine {name!r}: {'; '.join(unknown)}{cards}", field="engine")

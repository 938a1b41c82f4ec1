"""Fits the shipped H200 cards again: `python -m optimizer.capacity.refit [--runs FOLDER]`.

Reads `models/measurements/h200` and rewrites coefficients, covered ranges and errors of three cards in
`models/engines`; what else the cards say is kept. With a folder of whole runs (`run-*-steps.csv`), the
host's part is fitted again too, and the errors over those runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.capacity.cards import FitError
from optimizer.capacity.catalogue import gpu, llm
from optimizer.capacity.fit import Group, covers, errors, fit_step_time, split
from optimizer.capacity.host import Host, asynchronous, fit_host, kv_read_s
from optimizer.capacity.steplog import read_step_log
from optimizer.capacity.yaml_files import read_mapping, write_mapping
from optimizer.catalogue import catalogue_path
from optimizer.problem.engine import StepPiece, StepTime

SYNCHRONOUS = {
    "llama3.1-8b@h200": "steps-llama3.1-8b-bf16.csv",
    "llama2-13b@h200": "steps-llama2-13b-bf16.csv",
}
RUN_65B = "run-llama-65b-fp8-gsm8k-s200-steps.csv"
WINDOW = 8
"""Steps whose total is compared in the asynchronous run of LLaMA-65B."""

# The fp8 matrix products are tuned by rows: the run shows plateaus that end at these token counts. Above 512
# the engine leaves its captured graphs.
FP8_STARTS = (0, 17, 33, 65, 129, 257, 513)
WARM_UP = 3
"""First steps of the run of LLaMA-65B that are left out: kernels were compiled in them."""

HOST_RUN = "run-llama3.1-8b-bf16-gsm8k-s200-steps.csv"
"""The one run that the host's two figures are fitted to."""


def fit_65b(reference: StepTime) -> StepTime:
    """Fit LLaMA-65B in fp8 to its run, as far as the run tells.

    Parameters
    ----------
    reference
        The model of Llama-2-13B. Attention is in 16 bits in both engines, so its rate is scaled by the work;
        the context is read at the bandwidth; the run, whose context hardly varies, tells neither. Of steps above
        1,024 tokens it tells nothing: they are taken as matrix work at the share of the fp8 peak at
        which the 13B engine ran at the bf16 peak.
    """
    big, small, device = llm("llama-65b"), llm("llama2-13b"), gpu("h200")
    work = max(reference.regimes[-1].pieces, key=lambda piece: piece.per_prefill_token_s)
    pairs = (big.layers * big.heads * big.head_dim) / (small.layers * small.heads * small.head_dim)
    attention, context = pairs * work.per_prefill_attention_s, kv_read_s(big, device)
    given = {"prefill_attention": attention, "decode_context": context}
    log = read_step_log(_data() / RUN_65B)
    group = Group("any", starts=FP8_STARTS, pieces=1, given=given)
    fitted = fit_step_time(log[np.arange(WARM_UP, len(log))], (group,), window=WINDOW)
    peaks = device.flops("fp8") / device.bf16_flops
    weights = (model.parameters - model.embedding_parameters for model in (big, small))
    token = work.per_prefill_token_s * next(weights) / next(weights) / peaks
    products = StepPiece(
        per_prefill_token_s=token,
        per_prefill_attention_s=attention,
        per_decode_seq_s=token,
        per_decode_context_s=context,
    )
    last = fitted.regimes[-1]
    return StepTime(
        regimes=(*fitted.regimes[:-1], last.model_copy(update={"pieces": (*last.pieces, products)}))
    )


def read_host() -> Host:
    """Read what asynchronous scheduling hides of a step on the measured machine."""
    return Host(**{key: float(value) for key, value in read_mapping(_data() / "host.yaml").items()})


def main(arguments: list[str] | None = None) -> None:
    """Fit, print the errors, and rewrite the cards."""
    parser = argparse.ArgumentParser(prog="python -m optimizer.capacity.refit", description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder of run-*-steps.csv, to fit the host's part again")
    runs: Path | None = parser.parse_args(arguments).runs
    logs = {name: read_step_log(_data() / file) for name, file in SYNCHRONOUS.items()}
    parts = {name: split(log) for name, log in logs.items()}
    synchronous = {name: fit_step_time(fitted) for name, (fitted, _) in parts.items()}
    if runs:
        name = "llama3.1-8b@h200"
        host = fit_host(synchronous[name], _context_s(name), read_step_log(runs / HOST_RUN))
        write_mapping(_data() / "host.yaml", asdict(host))
    host = read_host()
    for name, log in logs.items():
        model = asynchronous(synchronous[name], host, _context_s(name))
        found = errors(synchronous[name], parts[name][1])
        for path in sorted(runs.glob(f"run-{name.partition('@')[0]}-*-steps.csv")) if runs else ():
            label = path.name.removeprefix("run-").removesuffix("-steps.csv").partition("-bf16-")[2]
            found[f"run {label}"] = errors(model, read_step_log(path), 25)["all"]
        _rewrite(name, model, found, covers(log))
    log = read_step_log(_data() / RUN_65B)
    model = fit_65b(synchronous["llama2-13b@h200"])
    _rewrite("llama-65b-fp8@h200", model, {"run gsm8k-s200": errors(model, log, WINDOW)["all"]}, covers(log))


def _context_s(card: str) -> float:
    model, _, device = card.partition("@")
    return kv_read_s(llm(model), gpu(device))


def _data() -> Path:
    return catalogue_path("models") / "measurements" / "h200"


def _rewrite(name: str, model: StepTime, found: Mapping[str, FitError], seen: Mapping[str, Any]) -> None:
    path = catalogue_path("models") / "engines" / f"{name}.yaml"
    card = read_mapping(path)
    # Without the runs at hand, what was found on them stands.
    kept = {key: value for key, value in card.get("fit_error", {}).items() if key.startswith("run ")}
    card["covers"] = {key: [int(low), int(high)] for key, (low, high) in seen.items()}
    card["fit_error"] = kept | {key: error.model_dump() for key, error in found.items()}
    card["step_time"] = model.model_dump(exclude_defaults=True)
    write_mapping(path, card)
    for key, error in found.items():
        print(
            f"{name:20s} {key:24s} {error.steps:5d}  median {error.median:6.2%}  mean {error.mean:6.2%}  sum {error.total:+.2%}"
        )


if __name__ == "__main__":
    main()

"""Fits the shipped H200 cards again: `python -m optimizer.capacity.refit [--runs FOLDER]`.

Reads `models/measurements/h200` and rewrites coefficients, covered ranges and errors of three cards in
`models/engines`; what else the cards say is kept. With a folder of whole runs (`run-*-steps.csv`), what
the host hides is fitted again too, and the errors over those runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from optimizer.capacity.cards import FitError
from optimizer.capacity.catalogue import llm
from optimizer.capacity.fit import Group, covers, errors, fit_step_time, split
from optimizer.capacity.host import Host, asynchronous, fit_busy, fit_hidden
from optimizer.capacity.steplog import read_step_log
from optimizer.capacity.yaml_files import read_mapping, write_mapping
from optimizer.catalogue import catalogue_path
from optimizer.problem.engine import StepTime

SYNCHRONOUS = {
    "llama3.1-8b@h200": "steps-llama3.1-8b-bf16.csv",
    "llama2-13b@h200": "steps-llama2-13b-bf16.csv",
}
RUN_65B = "run-llama-65b-fp8-gsm8k-s200-steps.csv"
WINDOW = 8
"""Steps whose total is compared in the asynchronous run of LLaMA-65B."""

# The fp8 matrix products are tuned by rows: the run shows plateaus that end at these token counts. Above 512
# the engine leaves its captured graphs; above 1,024 there are only the first two big prefills.
FP8_STARTS = (0, 17, 33, 65, 129, 257, 513, 1025)


def fit_65b(reference: StepTime) -> StepTime:
    """Fit LLaMA-65B in fp8 to its run.

    Parameters
    ----------
    reference
        The asynchronous model of Llama-2-13B. Attention and KV cache are in 16 bits in both engines, so their
        rates are scaled by the work and bytes per token: the run, whose context hardly varies, cannot tell them.
    """
    big, small = llm("llama-65b"), llm("llama2-13b")
    decode = next(r for r in reference.regimes if r.phase == "decode").pieces[0]
    prefill = next(r for r in reference.regimes if r.phase == "any").pieces[0]
    pairs = (big.layers * big.heads * big.head_dim) / (small.layers * small.heads * small.head_dim)
    group = Group(
        "any",
        starts=FP8_STARTS,
        pieces=1,
        work_alone=True,
        given={
            "prefill_attention": pairs * prefill.per_prefill_attention_s,
            "decode_context": big.kv_bytes_per_token()
            / small.kv_bytes_per_token()
            * decode.per_decode_context_s,
        },
    )
    return fit_step_time(read_step_log(_data() / RUN_65B), (group,), window=WINDOW)


def read_host() -> Host:
    """Read what asynchronous scheduling hides of a step on the measured machine."""
    return Host(**{key: float(value) for key, value in read_mapping(_data() / "host.yaml").items()})


def fit_host(runs: Path) -> Host:
    """Fit what the host hides on the Azure run of llama3.1-8b, and what it needs on the GSM8K run."""
    fitted, _ = split(read_step_log(_data() / SYNCHRONOUS["llama3.1-8b@h200"]))
    model = fit_step_time(fitted)
    hidden = fit_hidden(model, read_step_log(runs / "run-llama3.1-8b-bf16-azure-conv-20rps-steps.csv"))
    # The fixed part: a step needs no less than one that decodes a single token.
    floor = asynchronous(model, hidden).regimes[0].pieces[0].base_s
    return fit_busy(model, hidden, read_step_log(runs / "run-llama3.1-8b-bf16-gsm8k-s200-steps.csv"), floor)


def main(arguments: list[str] | None = None) -> None:
    """Fit, print the errors, and rewrite the cards."""
    parser = argparse.ArgumentParser(prog="python -m optimizer.capacity.refit", description=__doc__)
    parser.add_argument("--runs", type=Path, help="folder of run-*-steps.csv, to fit the host's part again")
    runs: Path | None = parser.parse_args(arguments).runs
    host = fit_host(runs) if runs else read_host()
    if runs:
        write_mapping(_data() / "host.yaml", asdict(host))
    models = {}
    for name, file in SYNCHRONOUS.items():
        log = read_step_log(_data() / file)
        fitted, held_out = split(log)
        model = fit_step_time(fitted)
        models[name] = asynchronous(model, host)
        found = errors(model, held_out)
        if runs:
            stem = name.partition("@")[0]
            for path in sorted(runs.glob(f"run-{stem}-*-steps.csv")):
                label = path.name.removeprefix(f"run-{stem}-bf16-").removesuffix("-steps.csv")
                found[f"run {label}"] = errors(models[name], read_step_log(path), 25)["all"]
        _rewrite(name, models[name], found, covers(log))
    log = read_step_log(_data() / RUN_65B)
    model = fit_65b(models["llama2-13b@h200"])
    _rewrite("llama-65b-fp8@h200", model, {"run gsm8k-s200": errors(model, log, WINDOW)["all"]}, covers(log))


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

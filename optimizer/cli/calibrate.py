"""`optimizer calibrate`: from a log of an engine's steps to its card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli.command import command
from optimizer.cli.options import Seed, whole
from optimizer.cli.output import check_outputs, say, show
from optimizer.errors import InputError

if TYPE_CHECKING:
    from optimizer.capacity import EngineCard
    from optimizer.capacity.calibrate import Calibration
    from optimizer.capacity.judge import Judged
    from optimizer.capacity.specifications import Dtype
    from optimizer.report.table import Table

_ENGINE, _OUTPUT = "Engine", "Output"
_PHASES = {"prefill": "prefill only", "decode": "decode only", "mixed": "prefill and decode", "all": "all"}
_QUANTITIES = {
    "prefill_tokens": "prompt tokens",
    "decode_seqs": "requests decoding",
    "decode_context": "their context in tokens",
}
_UNITS = (
    "Times in seconds; a coefficient is in seconds per step (base_s), token, request, or query-key pair "
    "(attention). Made by optimizer calibrate."
)


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "calibrate",
        examples=(
            "optimizer calibrate steps.csv --llm llama3.1-8b --gpu h200 --out mine.yaml",
            "optimizer calibrate sweep.csv.gz chats.csv.gz --llm llama3.1-70b --gpu h100 --tp 4 --kv-blocks 30000 --out mine.yaml",
            "optimizer simulate azure.csv --engine mine.yaml",
        ),
    )(calibrate)


def calibrate(
    steps: Annotated[
        list[Path],
        typer.Argument(metavar="STEPS.csv", show_default=False,
                       help="Step logs of one engine (.gz, .bz2, .xz too), as optimizer.integrations.vllm_steps writes "
                       "them; models/measurements/h200/README.md says what the columns mean."),
    ],
    llm: Annotated[
        str,
        typer.Option("--llm", metavar="NAME", rich_help_panel=_ENGINE,
                     help="LLM of the catalogue (optimizer engines lists them), or the path of its config.json."),
    ],
    gpu: Annotated[str, typer.Option("--gpu", metavar="NAME", rich_help_panel=_ENGINE,
                     help="GPU of the catalogue, or a .yaml like those.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE.yaml", rich_help_panel=_OUTPUT,
                     help="The engine card to write; --engine FILE.yaml reads it."),
    ],
    tp: Annotated[
        int, typer.Option("--tp", callback=whole(1), metavar="GPUS", rich_help_panel=_ENGINE, help="GPUs that share the model.")
    ] = 1,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="TYPE", rich_help_panel=_ENGINE, show_default="the model's",
                     help="Type of the weights: bf16, fp16 or fp8."),
    ] = None,
    kv_blocks: Annotated[
        int | None,
        typer.Option("--kv-blocks", callback=whole(1), metavar="BLOCKS", rich_help_panel=_ENGINE,
                     show_default="estimated from the memory",
                     help="Size of the KV cache; vLLM prints it when it starts (num_gpu_blocks, less one)."),
    ] = None,
    block_tokens: Annotated[
        int,
        typer.Option("--block-tokens", callback=whole(1), metavar="TOKENS", rich_help_panel=_ENGINE,
                     help="Tokens of a KV block."),
    ] = 16,
    max_num_batched_tokens: Annotated[
        int,
        typer.Option("--max-num-batched-tokens", callback=whole(1), metavar="TOKENS", rich_help_panel=_ENGINE,
                     help="Token budget of a step that the card is for."),
    ] = 8192,
    max_num_seqs: Annotated[
        int,
        typer.Option("--max-num-seqs", callback=whole(1), metavar="REQUESTS", rich_help_panel=_ENGINE,
                     help="Seats that the card is for."),
    ] = 256,
    asynchronous: Annotated[
        bool | None,
        typer.Option("--asynchronous/--synchronous", rich_help_panel=_ENGINE, show_default="found out",
                     help="Whether the engine prepared a step while another ran; single steps of such a log have no "
                     "time of their own, and totals of ten are fitted."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", rich_help_panel=_OUTPUT, show_default="LLM@GPU", help="Name of the card."),
    ] = None,
    software: Annotated[
        str,
        typer.Option("--software", metavar="NAME", rich_help_panel=_OUTPUT,
                     help="The serving engine and its version, for the card."),
    ] = "vLLM",
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", rich_help_panel=_OUTPUT,
                     help="Draw predicted against measured times (.png, .pdf or .svg; needs matplotlib)."),
    ] = None,
    seed: Seed = 0,
) -> None:  # fmt: skip
    """Fit a step-time model to a log of your engine's steps, and write its engine card.

    A fifth of the steps of each workload is held out. Printed is how far the model is from them, by
    what a step does and by its size: the median and the mean of a step's relative error, and the signed
    error of their sum. What the log cannot tell comes as warnings, which also stand on the card.
    """
    from optimizer.capacity.calibrate import calibrated_card, card_document
    from optimizer.capacity.steplog import read_step_logs
    from optimizer.capacity.yaml_files import write_mapping
    from optimizer.report.plot import need_matplotlib, picture_kind

    if out.suffix.lower() not in (".yaml", ".yml"):
        raise InputError(f"{out.suffix or 'no ending'!r} is no card; expected .yaml", file=str(out))
    for path in steps:
        check_outputs([out, plot], folder=None, source=path)
    if plot is not None:
        need_matplotlib()
        picture_kind(plot)
    log = read_step_logs(steps)
    card, made, warnings = calibrated_card(
        log, llm=llm, gpu=gpu, tp=tp, dtype=_dtype(dtype), name=name, kv_blocks=kv_blocks, asynchronous=asynchronous,
        seed=seed, source=[path.name for path in steps], software=software, block_tokens=block_tokens,
        max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=max_num_seqs,
    )  # fmt: skip
    # Files first: a pipe that closes early must not cost them.
    write_mapping(out, card_document(card), _UNITS)
    if plot is not None:
        from optimizer.report.calibration_plot import plot_calibration
        from optimizer.report.plot import save

        save(plot_calibration(made.judged, title=f"{card.name}: steps that took no part in the fit"), plot)
    _show(card, made)
    for warning in warnings:
        say(f"warning: {warning}")
    for written in (out, plot):
        if written is not None:
            say(f"wrote {written}")


def _dtype(given: str | None) -> Dtype | None:
    from optimizer.capacity.specifications import BYTES

    found = next((known for known in BYTES if known == given), None)
    if given is not None and found is None:
        raise InputError(f"{given!r}; expected {', '.join(BYTES)}", field="dtype")
    return found


def _show(card: EngineCard, made: Calibration) -> None:
    kind = "asynchronous: totals of ten steps are compared" if made.asynchronous else "synchronous"
    print(
        f"{card.name}: {made.steps:,} steps, {kind}; {made.fitted:,} fitted, {len(made.judged):,} held out\n"
    )
    show(_table(made.judged))


def _table(judged: Judged) -> Table:
    from optimizer.report.table import Column, Table

    errors = judged.by_phase()
    rows = [(label, errors[phase]) for phase, label in _PHASES.items() if phase in errors]
    rows += [(f"{_QUANTITIES[name]}: {size}", error) for name, size, error in judged.by_size()]
    figures = (Column("median", "median", "%", scale=100), Column("mean", "mean", "%", scale=100),
               Column("total", "sum", "%", scale=100))  # fmt: skip
    return Table(
        (Column("name", "error of the steps held out"), Column("steps", "steps"), *figures),
        [{"name": label, **error.model_dump()} for label, error in rows],
    )

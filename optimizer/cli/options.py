"""Options that several commands share, in groups; each says its unit and its default."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from optimizer.errors import InputError

_MOST = 10**9
_WORKLOAD, _ENGINE, _POLICY, _SOLVE = "Requests", "Engine", "Policy and measure", "Solve"


def whole(least: int, most: int = _MOST) -> Callable[[int | None], int | None]:
    """Give a callback that refuses numbers out of a range.

    In place of `min` and `max`, which typer spells out in the help, where there is no room.
    """

    def check(value: int | None) -> int | None:
        if value is not None and not least <= value <= most:
            raise typer.BadParameter(f"{value} is not in the range from {least} to {most}.")
        return value

    return check


def _finite(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value >= 0):
        raise typer.BadParameter(f"{value} is no finite number >= 0.")
    return value


def _above_zero(value: float | None) -> float | None:
    if value is not None and not (math.isfinite(value) and value > 0):
        raise typer.BadParameter(f"{value} is no finite number > 0.")
    return value


def _share(value: float) -> float:
    if not 0 <= value < 1:
        raise typer.BadParameter(f"{value} is no share in [0, 1); 0.01 is 1 %.")
    return value


Trace = Annotated[
    str,
    typer.Argument(
        metavar="TRACE",
        help="A trace file in a public format (Azure, Mooncake, Vidur, Splitwise, BurstGPT, ShareGPT, LLMServingSim, "
        "AIBrix), an instance (JSON or CSV), or the name of one that comes with the package (optimizer instances): "
        "gsm8k/paper-200.",
        show_default=False,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", callback=whole(0), metavar="N", help="Seed of all that is drawn.", rich_help_panel=_POLICY
    ),
]
OutFolder = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="DIR", help="Folder for results, made where missing. Default: results/<trace>.", rich_help_panel="Output",
        show_default=False,
    ),
]  # fmt: skip
Objectives = Annotated[
    str | None,
    typer.Option(
        "--objective", metavar="O", rich_help_panel=_SOLVE, show_default="the instance's own; mean-latency of a trace",
        help="What to make small: makespan, mean-latency, weighted-latency, ttft or goodput; see above.",
    ),
]  # fmt: skip
TimeLimit = Annotated[
    float,
    typer.Option("--time-limit", callback=_above_zero, metavar="SECONDS", rich_help_panel=_SOLVE,
                 help="Wall time. The first policies and the bound are computed even if it is too short for them."),
]  # fmt: skip
PolicyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--policy-option", metavar="KEY=VALUE", rich_help_panel=_POLICY,
        help="An option of the policy (optimizer policies lists them); may be given again. "
        "With several policies, NAME.KEY=VALUE is for one of them.",
    ),
]  # fmt: skip
PolicyFile = Annotated[
    list[Path] | None,
    typer.Option(
        "--policy-file", metavar="FILE.py", rich_help_panel=_POLICY,
        help='A Python file of yours, which is executed and registers policies with @register("name"); '
        "may be given again.",
    ),
]  # fmt: skip
Check = Annotated[
    bool,
    typer.Option("--check", rich_help_panel=_POLICY,
                 help="Have each schedule judged by the independent checker (optimizer check); takes about as long as "
                 "the simulation."),
]  # fmt: skip


@dataclass(frozen=True)
class WorkloadOptions:
    """Which requests of a trace, at which pace, and what is known of them."""

    trace: Trace
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", rich_help_panel=_WORKLOAD, show_default="detected",
            help="Format of the file: azure, mooncake, bailian, vidur, vidur-lengths, splitwise, burstgpt, sharegpt, "
            "llmservingsim, aibrix, compact, instance.",
        ),
    ] = None  # fmt: skip
    hash_block_tokens: Annotated[
        int | None,
        typer.Option("--hash-block-tokens", callback=whole(1), metavar="TOKENS", rich_help_panel=_WORKLOAD,
                     show_default="the format's, or the file's",
                     help="Tokens that a prefix block hash of the file stands for."),
    ] = None  # fmt: skip
    skip_bad_rows: Annotated[
        bool,
        typer.Option("--skip-bad-rows", rich_help_panel=_WORKLOAD,
                     help="Leave out rows that are wrong, count and list them; otherwise the first one is an error."),
    ] = False  # fmt: skip
    first: Annotated[
        int,
        typer.Option(
            "--first",
            callback=whole(0),
            metavar="ROW",
            rich_help_panel=_WORKLOAD,
            help="Row to start from, counted from 0.",
        ),
    ] = 0
    count: Annotated[
        int | None,
        typer.Option("--count", callback=whole(1), metavar="ROWS", rich_help_panel=_WORKLOAD, show_default="all",
                     help="Number of rows to take."),
    ] = None  # fmt: skip
    start: Annotated[
        float | None,
        typer.Option("--start", callback=_finite, metavar="SECONDS", rich_help_panel=_WORKLOAD,
                     help="Take requests that arrive from this moment of the file on; time starts anew there."),
    ] = None  # fmt: skip
    end: Annotated[
        float | None,
        typer.Option("--end", callback=_above_zero, metavar="SECONDS", rich_help_panel=_WORKLOAD,
                     help="Take requests that arrive before this moment of the file."),
    ] = None  # fmt: skip
    rate: Annotated[
        float | None,
        typer.Option("--rate", callback=_above_zero, metavar="REQ/S", rich_help_panel=_WORKLOAD, show_default="as in the file",
                     help="Mean arrivals per second: stretches the time axis of the file, or draws Poisson arrivals "
                     "where it has none."),
    ] = None  # fmt: skip
    cv: Annotated[
        float | None,
        typer.Option("--cv", callback=_finite, metavar="RATIO", rich_help_panel=_WORKLOAD, show_default="1 (Poisson)",
                     help="Draw arrivals at --rate with this coefficient of variation between them (Gamma), also where "
                     "the file has some."),
    ] = None  # fmt: skip
    time_scale: Annotated[
        float | None,
        typer.Option("--time-scale", callback=_above_zero, metavar="FACTOR", rich_help_panel=_WORKLOAD, show_default="1",
                     help="Multiply all arrival times: 0.5 doubles the load."),
    ] = None  # fmt: skip
    spread_ticks: Annotated[
        float | None,
        typer.Option("--spread-ticks", callback=_above_zero, metavar="SECONDS", rich_help_panel=_WORKLOAD,
                     help="Spread arrivals at random inside ticks of this width, for traces recorded on a grid "
                     "(Mooncake's: 3)."),
    ] = None  # fmt: skip
    max_prompt: Annotated[
        int | None,
        typer.Option("--max-prompt", callback=whole(1), metavar="TOKENS", rich_help_panel=_WORKLOAD,
                     help="Clip prompts to this length."),
    ] = None  # fmt: skip
    max_output: Annotated[
        int | None,
        typer.Option("--max-output", callback=whole(1), metavar="TOKENS", rich_help_panel=_WORKLOAD,
                     help="Clip outputs to this length."),
    ] = None  # fmt: skip
    max_total: Annotated[
        int | None,
        typer.Option("--max-total", callback=whole(2), metavar="TOKENS", rich_help_panel=_WORKLOAD,
                     help="Clip prompt plus output to this length, the prompt first."),
    ] = None  # fmt: skip
    tenant: Annotated[
        list[str] | None,
        typer.Option("--tenant", metavar="NAME", rich_help_panel=_WORKLOAD,
                     help="Take only requests of this tenant; may be given again."),
    ] = None  # fmt: skip
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths", metavar="KNOWN", rich_help_panel=_WORKLOAD, show_default="exact, or as in the instance",
            help="What policies may know of output lengths: exact; none; bucket:50 (rounded up to 50 tokens); interval:0.3 "
            "(known to some 30 %); noise:0.5 (a guess with a log-normal error of that sigma).",
        ),
    ] = None  # fmt: skip
    max_output_tokens: Annotated[
        int | None,
        typer.Option("--max-output-tokens", callback=whole(1), metavar="TOKENS", rich_help_panel=_WORKLOAD,
                     help="The cap that every client asks for (max_tokens), which policies see.",
                     show_default="as in the file; else a power of two above the longest output, at least 2048"),
    ] = None  # fmt: skip
    ttft_slo: Annotated[
        float | None,
        typer.Option("--ttft-slo", callback=_above_zero, metavar="SECONDS", rich_help_panel=_POLICY, show_default="0.2",
                     help="Level of the time to first token, for goodput, where a request has none of its own."),
    ] = None  # fmt: skip
    tpot_slo: Annotated[
        float | None,
        typer.Option("--tpot-slo", callback=_above_zero, metavar="SECONDS", rich_help_panel=_POLICY, show_default="0.1",
                     help="Level of the time per further output token, for goodput, where a request has none."),
    ] = None  # fmt: skip


@dataclass(frozen=True)
class InstanceOptions(WorkloadOptions):
    """The same, where it is an instance that is asked for."""

    trace: Annotated[
        str,
        typer.Argument(
            metavar="INSTANCE",
            help="An instance (JSON), which brings its engine; a trace in any format of optimizer simulate, with --engine; or "
            "the name of one that comes with the package: gsm8k/paper-200 (optimizer instances lists them).",
            show_default=False,
        ),
    ]


@dataclass(frozen=True)
class SolveOptions:
    """What is sought, and for how long."""

    objective: Objectives = None
    time_limit: TimeLimit = 60.0
    gap: Annotated[
        float,
        typer.Option("--gap", callback=_share, metavar="SHARE", rich_help_panel=_SOLVE,
                     help="End as soon as the schedule is at most this far from optimal: 0.01 is 1 %."),
    ] = 0.0  # fmt: skip


@dataclass(frozen=True)
class EngineOptions:
    """The engine, and where it differs from its card."""

    engine: Annotated[
        str | None,
        typer.Option(
            "--engine", metavar="LLM@GPU", rich_help_panel=_ENGINE, show_default="the instance's own",
            help="Engine: llama3.1-8b@h200, llama3.1-70b-tp4@h100, a card of your own (mine.yaml); optimizer engines "
            "lists what there is.",
        ),
    ] = None  # fmt: skip
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option("--max-num-batched-tokens", callback=whole(1), metavar="TOKENS", rich_help_panel=_ENGINE,
                     show_default="the engine's", help="Token budget of a step."),
    ] = None  # fmt: skip
    max_num_seqs: Annotated[
        int | None,
        typer.Option("--max-num-seqs", callback=whole(1), metavar="REQUESTS", rich_help_panel=_ENGINE,
                     show_default="the engine's", help="Seats: most requests that run at once."),
    ] = None  # fmt: skip
    kv_blocks: Annotated[
        int | None,
        typer.Option("--kv-blocks", callback=whole(1), metavar="BLOCKS", rich_help_panel=_ENGINE,
                     show_default="the engine's", help="Size of the KV cache."),
    ] = None  # fmt: skip
    block_tokens: Annotated[
        int | None,
        typer.Option("--block-tokens", callback=whole(1), metavar="TOKENS", rich_help_panel=_ENGINE,
                     show_default="the engine's", help="Tokens of a KV block."),
    ] = None  # fmt: skip
    prefix_caching: Annotated[
        bool | None,
        typer.Option("--prefix-caching/--no-prefix-caching", rich_help_panel=_ENGINE, show_default="the engine's",
                     help="Share the KV blocks of equal prefixes, where the trace has block hashes."),
    ] = None  # fmt: skip
    max_model_len: Annotated[
        int | None,
        typer.Option("--max-model-len", callback=whole(2), metavar="TOKENS", rich_help_panel=_ENGINE,
                     show_default="the engine's", help="Longest prompt plus output."),
    ] = None  # fmt: skip


def key_values(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """Read KEY=VALUE pairs, as given with an option.

    Raises
    ------
    InputError
        On text without `=`, or a key that stands twice.
    """
    read: dict[str, str] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_") if "." not in key else key.strip()
        if not equals or not key:
            raise InputError(f"{text!r}; expected KEY=VALUE", field=option)
        if key in read:
            raise InputError(f"{key} is given twice; give it once", field=option)
        read[key] = value.strip()
    return read


def policy_options(given: Sequence[str] | None) -> dict[str, str]:
    """Read what --policy-option was given."""
    return key_values(given, "policy-option")


def load_policy_files(files: Sequence[Path] | None) -> None:
    """Load the policies of the user's files.

    Raises
    ------
    InputError
        If a file is wrong, or registers nothing.
    """
    if files:
        from optimizer.comparison import load_policy_file

        for file in files:
            load_policy_file(file)

"""`optimizer generate`: draw a synthetic workload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from optimizer.cli.command import command
from optimizer.cli.options import key_values, whole
from optimizer.cli.output import check_outputs, say
from optimizer.errors import InputError

_SUFFIXES = (".json", ".csv")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    command(
        app,
        "generate",
        examples=(
            "optimizer generate chat --n 2000 --rate 30 --engine llama3.1-8b@h200 --out chat.json",
            "optimizer generate shared-prefix --n 500 --option systems=3 --option system_tokens=4096 --out prefix.csv",
            "optimizer generate mixed-long --n 500 --out lengths.csv",
        ),
    )(generate)


def generate(
    family: Annotated[
        str,
        typer.Argument(metavar="FAMILY", help="Law of the lengths; in brackets its options for --option: "
                       "chat and bursty (max_tokens=4096), mixed-long (long_share=0.3, shortest=2048, longest=8192), "
                       "gsm8k-like, kv-ramps (kv_tokens=40, longest_prompt=5), "
                       "shared-prefix (systems=8, system_tokens=1024, block_tokens=16).")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="FILE", help=".json: an instance, which needs --engine; .csv: the requests alone."),
    ],
    n: Annotated[int, typer.Option("--n", callback=whole(1, 10**8), metavar="N", help="Number of requests.")] = 1000,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="An option of the family; may be given again."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", callback=whole(0), metavar="N", help="The same seed draws the same requests.")] = 0,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="REQ/S", help="Mean arrivals per second (Poisson; bursty: bursts).",
                     show_default="all at 0"),
    ] = None,
    cv: Annotated[
        float | None,
        typer.Option("--cv", metavar="RATIO", help="Coefficient of variation of the gaps between arrivals.",
                     show_default="1; bursty: 4"),
    ] = None,
    engine: Annotated[
        str | None, typer.Option("--engine", metavar="LLM@GPU", help="Engine of the instance; optimizer engines lists them.")
    ] = None,
) -> None:  # fmt: skip
    """Draw a synthetic workload and write it as an instance (JSON) or as requests (CSV)."""
    from optimizer.traces import generate as draw
    from optimizer.traces import write_csv

    kind = out.suffix.lower()
    if kind not in _SUFFIXES:
        raise InputError(f"{kind or 'no ending'!r} is no kind of workload; expected {' or '.join(_SUFFIXES)}",
                         file=str(out))  # fmt: skip
    if kind == ".json" and engine is None:
        raise InputError("an instance needs an engine; give --engine, or write a .csv", field="engine")
    check_outputs([out], folder=None, source=Path())
    options = _family_options(family, option)
    requests = draw(family, n, seed, rate=rate, cv=cv, **options)
    if kind == ".csv":
        write_csv(requests, out)
    else:
        from optimizer.capacity import engine as engine_of
        from optimizer.problem import Instance

        pace = (
            "" if rate is None else f", {rate:g} requests per second" + ("" if cv is None else f", cv {cv:g}")
        )
        source = f"optimizer generate {family}, n {n}, seed {seed}{pace}"
        source += "".join(f", {key} {value}" for key, value in options.items())
        Instance(f"{family}-{n}-{seed}", requests, engine_of(engine or ""), source=source).write(out)
    say(f"wrote {out}: {len(requests):,} requests, {int(requests.prompt_tokens.sum()):,} prompt and "
        f"{int(requests.output_tokens.sum()):,} output tokens")  # fmt: skip


def _family_options(family: str, given: list[str] | None) -> dict[str, int | float]:
    from optimizer.traces import family_options

    known = family_options(family)
    options: dict[str, int | float] = {}
    for key, text in key_values(given, "option").items():
        if key not in known:
            raise InputError(
                f"{family} has no option {key!r}; expected {', '.join(known) or 'none'}", field="option"
            )
        kind = type(known[key])
        try:
            options[key] = kind(text)
        except ValueError:
            expected = "a whole number" if kind is int else "a number"
            raise InputError(f"{text!r} for {key}; expected {expected}", field="option") from None
    return options

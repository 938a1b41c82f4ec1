"""Synthetic workloads: seeded families, each with its law and where the law comes from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from optimizer.errors import InputError
from optimizer.problem import PrefixHashes, Requests
from optimizer.problem.columns import Ints
from optimizer.traces.renewal import drawn_arrivals

Columns = dict[str, Any]
"""Columns of `Requests`, and `prefix`."""

Law = Callable[..., Columns]
"""From a generator of random numbers, a count and options to columns without arrivals."""

_LAWS: dict[str, Law] = {}
_CV = {"bursty": 4.0}


def _family(name: str) -> Callable[[Law], Law]:
    def register(law: Law) -> Law:
        _LAWS[name] = law
        return law

    return register


def families() -> dict[str, str]:
    """Give the name of every family, and the first line on its law."""
    return {name: (law.__doc__ or "").partition("\n")[0] for name, law in _LAWS.items()}


def family_options(family: str) -> dict[str, int | float]:
    """Give the options of a family with their defaults; its law's docstring says what they do.

    Raises
    ------
    InputError
        If there is no such family.

    Examples
    --------
    >>> family_options("mixed-long")
    {'long_share': 0.3, 'shortest': 2048, 'longest': 8192}
    """
    parameters = list(inspect.signature(_law(family)).parameters.values())[2:]
    return {parameter.name: parameter.default for parameter in parameters}


def _law(family: str) -> Law:
    if family not in _LAWS:
        raise InputError(f"{family!r} is no family; expected one of {', '.join(_LAWS)}", field="family")
    return _LAWS[family]


def generate(
    family: str, n: int, seed: int, *, rate: float | None = None, cv: float | None = None, **options: Any
) -> Requests:
    """Draw requests of a family.

    The same arguments give the same requests. Lengths do not depend on `rate` and `cv`: a sweep over the
    load keeps its requests.

    Parameters
    ----------
    family
        One of `families()`: `chat`, `mixed-long`, `gsm8k-like`, `kv-ramps`, `shared-prefix`, `bursty`.
    n
        How many, at least 1.
    seed
        At least 0.
    rate
        Mean arrivals per second; None: all at 0.
    cv
        Coefficient of variation of the gaps between arrivals; None: 4 for `bursty`, else 1 (Poisson).
    **options
        Those of the family's law, by its docstring.

    Raises
    ------
    InputError
        If there is no such family or option, or a number makes no sense.

    Examples
    --------
    >>> r = generate("chat", 3, seed=1, rate=2.0)
    >>> len(r), float(r.arrival_s[0])
    (3, 0.0)
    """
    law = _law(family)
    for name, value, least in (("n", n, 1), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{value}; expected a whole number >= {least}", field=name)
    accepted = family_options(family)
    for option in options:
        if option not in accepted:
            raise InputError(
                f"{family} has no such option; expected {', '.join(accepted) or 'none'}", field=option
            )
    if rate is None and (family == "bursty" or cv is not None):
        raise InputError("bursts are in time; give a rate of arrivals per second", field="rate")
    lengths, gaps = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(2))
    columns = law(lengths, n, **options)
    prefix = columns.pop("prefix", None)
    if rate is not None:
        columns["arrival_s"] = drawn_arrivals(n, rate, _CV.get(family, 1.0) if cv is None else cv, gaps)
    return Requests.from_columns(columns, prefix=prefix)


def log_normal_lengths(rng: np.random.Generator, n: int, mean: float, median: float, most: int) -> Ints:
    """Draw whole numbers from 1 to `most` whose law, before rounding, has this mean and median."""
    sigma = np.sqrt(2 * np.log(mean / median))
    drawn = np.rint(np.exp(rng.normal(np.log(median), sigma, n)))
    return np.clip(drawn, 1, most).astype(np.int64)


def normal_lengths(rng: np.random.Generator, n: int, mean: float, deviation: float) -> Ints:
    """Draw whole numbers >= 1 from a normal law, drawn anew where it falls below."""
    drawn = rng.normal(mean, deviation, n)
    while (low := drawn < 0.5).any():
        drawn[low] = rng.normal(mean, deviation, int(low.sum()))
    return np.maximum(np.rint(drawn), 1).astype(np.int64)


@_family("chat")
def chat(rng: np.random.Generator, n: int, max_tokens: int = 4096) -> Columns:
    """Short chat: log-normal, prompt mean 40.6 and median 11, output mean 85.3 and median 45.

    The four figures are those of the LMSYS-Chat-1M sample in arXiv 2502.07115, where lengths are small
    because the prompts are first turns; that the law is log-normal is our choice. `max_tokens` clips both.
    """
    return {
        "prompt_tokens": log_normal_lengths(rng, n, 40.6, 11.0, max_tokens),
        "output_tokens": log_normal_lengths(rng, n, 85.3, 45.0, max_tokens),
    }


@_family("bursty")
def bursty(rng: np.random.Generator, n: int, max_tokens: int = 4096) -> Columns:
    """Lengths as `chat`; arrivals in bursts, Gamma gaps with a coefficient of variation of 4.

    Production traces vary that much and more: see the burst statistics of BurstGPT, arXiv 2401.17644.
    It needs a rate.
    """
    return chat(rng, n, max_tokens)


@_family("mixed-long")
def mixed_long(
    rng: np.random.Generator, n: int, long_share: float = 0.3, shortest: int = 2048, longest: int = 8192
) -> Columns:
    """Chat prompts among long ones: 30 % uniform from 2,048 to 8,192 tokens; outputs of mean 200.

    Our own law, for the case where first-come first-served does worst: the rest of the prompts are as in
    `chat`, outputs are log-normal with mean 200 and median 120.
    """
    if not 0 <= long_share <= 1:
        raise InputError(f"{long_share}; expected a number from 0 to 1", field="long_share")
    if not 1 <= shortest <= longest:
        raise InputError(f"{shortest} to {longest} is no range of lengths", field="shortest")
    short = log_normal_lengths(rng, n, 40.6, 11.0, shortest)
    long = rng.integers(shortest, longest, n, endpoint=True)
    return {
        "prompt_tokens": np.where(rng.random(n) < long_share, long, short),
        "output_tokens": log_normal_lengths(rng, n, 200.0, 120.0, 4096),
    }


@_family("gsm8k-like")
def gsm8k_like(rng: np.random.Generator, n: int) -> Columns:
    """Truncated normals as attributed to arXiv 2502.15763: prompt 68.43 +- 25.04, output 344.83 +- 187.99.

    These moments reach us at second hand and could not be checked against the paper's text. Those of the
    prompt are exactly the GSM8K test questions' in LLaMA tokens with one more for the start of the text;
    those of the output stand for answers of LLaMA-65B. The published model solutions, which are shorter
    (134 +- 75), are embedded with the questions as `gsm8k/gsm8k-1319`.
    """
    return {
        "prompt_tokens": normal_lengths(rng, n, 68.43, 25.04),
        "output_tokens": normal_lengths(rng, n, 344.83, 187.99),
    }


@_family("kv-ramps")
def kv_ramps(rng: np.random.Generator, n: int, kv_tokens: int = 40, longest_prompt: int = 5) -> Columns:
    """Tiny requests whose outputs may fill the cache alone: prompt U[1, 5], output U[1, kv_tokens - prompt].

    The law of the small synthetic instances attributed to arXiv 2502.07115 (there n is U[40, 60] and the
    cache U[30, 50] tokens; at second hand): with a cache of `kv_tokens`, what fits together depends on how
    the growing contexts overlap.
    """
    if not 1 <= longest_prompt < kv_tokens:
        raise InputError(f"{longest_prompt}; expected 1 to kv_tokens - 1", field="longest_prompt")
    prompt = rng.integers(1, longest_prompt, n, endpoint=True)
    return {"prompt_tokens": prompt, "output_tokens": rng.integers(1, kv_tokens - prompt, n, endpoint=True)}


@_family("shared-prefix")
def shared_prefix(
    rng: np.random.Generator,
    n: int,
    systems: int = 8,
    system_tokens: int = 1024,
    block_tokens: int = 16,
) -> Columns:
    """Eight system prompts in front of chat questions; popular ones occur more often (Zipf).

    Our own law, in the manner of deployments with a few applications: the k-th system prompt is chosen with
    weight 1/k and is half to one and a half times `system_tokens` long; the question after it has mean 120
    and median 60 tokens, the answer 200 and 120. Block hashes cover full blocks of `block_tokens`; the
    tenant is the system prompt.
    """
    for name, value in (
        ("systems", systems),
        ("system_tokens", system_tokens),
        ("block_tokens", block_tokens),
    ):
        if value < 1:
            raise InputError(f"{value}; expected a whole number >= 1", field=name)
    weights = 1 / np.arange(1, systems + 1)
    lengths = rng.integers(-(-system_tokens // 2), system_tokens * 3 // 2, systems, endpoint=True)
    chosen = rng.choice(systems, n, p=weights / weights.sum())
    prompt = lengths[chosen] + log_normal_lengths(rng, n, 120.0, 60.0, 4096)
    blocks, shared = prompt // block_tokens, lengths // block_tokens
    # A block that holds the end of the system prompt and the start of a question belongs to one request.
    first_own = int(shared.sum())
    bases = np.concatenate([[0], np.cumsum(shared)])
    starts = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], blocks)
    system = np.repeat(chosen, blocks)
    common = place < shared[system]
    ids = np.where(common, bases[system] + place, first_own + np.cumsum(~common) - 1)
    return {
        "prompt_tokens": prompt,
        "output_tokens": log_normal_lengths(rng, n, 200.0, 120.0, 4096),
        "tenant": [f"system-{k}" for k in chosen.tolist()],
        "prefix": PrefixHashes(ids.astype(np.int64), starts, block_tokens),
    }

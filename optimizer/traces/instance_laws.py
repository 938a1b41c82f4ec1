"""The laws that the instances of the catalogue are drawn by: lengths, arrivals, and what the engine must be for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from optimizer.errors import InputError
from optimizer.problem import PrefixHashes, Requests
from optimizer.problem.columns import Ints
from optimizer.traces.formats import read_trace
from optimizer.traces.generators import families, family_options, generate, log_normal_lengths, normal_lengths
from optimizer.traces.ramp_families import ramp_family


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What a law gives.

    Attributes
    ----------
    requests
        In order of arrival.
    engine
        Fields of `Engine` that belong to the draw: a size of the KV cache, say.
    """

    requests: Requests
    engine: dict[str, Any] = field(default_factory=dict)


Law = Callable[..., Drawn]
"""From a seed, a number of requests and parameters to a draw; `folder` (where files are) is passed where it is taken."""

_LAWS: dict[str, Law] = {}


def _law(name: str) -> Callable[[Law], Law]:
    def register(law: Law) -> Law:
        _LAWS[name] = law
        return law

    return register


def law_names() -> tuple[str, ...]:
    """Name the laws: those of this module, and every family of `generate`.

    >>> "paper-clients" in law_names() and "chat" in law_names()
    True
    """
    return (*_LAWS, *families())


def draw(law: str, seed: int, n: int | tuple[int, int], parameters: dict[str, Any], folder: Path) -> Drawn:
    """Draw requests by a law.

    Parameters
    ----------
    law
        One of `law_names()`.
    seed
        At least 0; the same seed draws the same.
    n
        How many requests, at least 1; two numbers: drawn uniformly between them, both included.
    parameters
        Of the law, by its docstring.
    folder
        Where the files lie that a law reads.

    Raises
    ------
    InputError
        If there is no such law or parameter, or a number makes no sense.

    Examples
    --------
    >>> len(draw("chat", 1, 3, {"rate": 2.0}, Path()).requests)
    3
    """
    if isinstance(n, tuple):
        n = int(np.random.default_rng([seed, *n]).integers(*n, endpoint=True))
    if law not in law_names():
        raise InputError(f"{law!r}; expected one of {', '.join(law_names())}", field="law")
    made = _LAWS.get(law) or partial(_generated, law)
    signature = inspect.signature(made)
    own = {"folder": folder} if "folder" in signature.parameters else {}
    try:
        bound = signature.bind(seed, n, **own, **parameters)
    except TypeError as error:
        raise InputError(f"{error} (the law {law} takes {_taken(law)})", field="parameters") from None
    return made(*bound.args, **bound.kwargs)


def _generated(law: str, seed: int, n: int, **options: Any) -> Drawn:
    return Drawn(generate(law, n, seed, **options))


def _taken(law: str) -> str:
    if law in families():
        return ", ".join(("rate", "cv", *family_options(law)))
    names = list(inspect.signature(_LAWS[law]).parameters)[2:]
    return ", ".join(name for name in names if name != "folder") or "no parameters"


def _streams(seed: int, count: int) -> list[np.random.Generator]:
    """Give independent random numbers for things that should not depend on each other."""
    return [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(count)]


@_law("file")
def from_file(seed: int, n: int, file: str, folder: Path) -> Drawn:
    """The first n requests of a file of the family's folder, in any format of `read_trace`."""
    requests = read_trace(folder / file).requests
    if len(requests) < n:
        raise InputError(f"has {len(requests)} requests, and {n} are asked for", file=str(folder / file))
    return Drawn(requests.take(slice(0, n)))


# A normal law cut off below half a token has other moments than the whole one. These two, cut off, have the moments
# attributed to arXiv 2502.15763: prompts 68.43 +- 25.04 tokens, outputs 344.83 +- 187.99.
_PAPER_PROMPT = (68.132526, 25.440303)
_PAPER_OUTPUT = (311.788489, 216.142137)


@_law("paper-clients")
def paper_clients(seed: int, n: int) -> Drawn:
    """The setting of arXiv 2502.15763 as far as it is known: truncated normal lengths, all requests there at 0.

    Prompts are 68.43 +- 25.04 tokens, outputs 344.83 +- 187.99 (moments of the truncated laws; they reach us at
    second hand). The paper decodes every output token in a round of its own after the prefill; this engine
    samples the first token with the prompt. So a request has one output token more here, and as many decode
    rounds as there.
    """
    prompts, outputs = _streams(seed, 2)
    return Drawn(
        Requests.from_columns(
            {
                "prompt_tokens": normal_lengths(prompts, n, *_PAPER_PROMPT),
                "output_tokens": normal_lengths(outputs, n, *_PAPER_OUTPUT) + 1,
            }
        )
    )


@_law("ramps")
def ramps(seed: int, n: int, family: str, load: float | None = None) -> Drawn:
    """A family of `optimizer.traces.ramp_family`, in rounds of one second; its cache belongs to the draw."""
    drawn = ramp_family(family, n, seed, load=load)
    columns: dict[str, object] = {"prompt_tokens": drawn.prompt, "output_tokens": drawn.rounds}
    if load is not None:
        columns["arrival_s"] = drawn.arrival.astype(np.float64)
    return Drawn(Requests.from_columns(columns), {"kv_blocks": drawn.capacity})


@_law("conversations")
def conversations(
    seed: int,
    n: int,
    rate: float,
    turns: float = 4.0,
    think_s: float = 20.0,
    token_s: float = 0.02,
    longest: int = 16384,
    block_tokens: int = 16,
) -> Drawn:
    """Conversations: every turn's prompt is all that was said before and a new question.

    Conversations begin at random (Poisson), so that `rate` turns arrive per second. After an answer, which takes
    `token_s` per token, a further turn comes with probability 1 - 1/`turns`, after a time of thinking that is exponential
    with mean `think_s`. Questions are log-normal with mean 120 and median 60 tokens, answers with mean 200 and median
    120; before the first question stand instructions of mean 400 and median 250. A conversation ends before it is
    longer than `longest` tokens. Block hashes cover answers too: a turn finds what the one before it left in the cache.

    The law is our own. Arrivals do not depend on the schedule (an open loop), so that all policies see the same trace.
    They are seen from some time after the first conversation began, when as many have ended.
    """
    begin, talk = _streams(seed, 2)
    warm_up_s = 4 * turns * (think_s + 200 * token_s)
    rows: list[tuple[float, int, int, int]] = []
    start, session = 0.0, 0
    # No later conversation has a turn before its start: what arrived up to there is complete.
    while sum(row[0] <= start for row in rows) < n:
        start += float(begin.exponential(turns / rate))
        at, context = start, int(log_normal_lengths(talk, 1, 400.0, 250.0, longest // 4)[0])
        count = int(talk.geometric(1 / turns))
        questions, answers = (
            log_normal_lengths(talk, count, mean, median, longest // 4).tolist()
            for mean, median in ((120.0, 60.0), (200.0, 120.0))
        )
        for question, answer, thought_s in zip(
            questions, answers, talk.exponential(think_s, count).tolist(), strict=True
        ):
            prompt, context = context + question, context + question + answer
            if context > longest:
                break
            if at >= warm_up_s:
                rows.append((at, session, prompt, answer))
            at += answer * token_s + thought_s
        session += 1
    rows = sorted(rows)[:n]
    arrival, owner, prompt_tokens, output_tokens = (np.array(column) for column in zip(*rows, strict=True))
    return Drawn(
        Requests.from_columns(
            {
                "arrival_s": arrival - arrival[0],
                "prompt_tokens": prompt_tokens,
                "output_tokens": output_tokens,
                "tenant": [f"conversation-{k}" for k in owner.tolist()],
            },
            prefix=_shared_within(owner, prompt_tokens + output_tokens, block_tokens, longest),
        )
    )


def _shared_within(owner: Ints, tokens: Ints, block_tokens: int, longest: int) -> PrefixHashes:
    """Give block hashes of texts that grow: the k-th block of an owner's text is the same in all its requests."""
    blocks = tokens // block_tokens
    starts = np.concatenate([[0], np.cumsum(blocks)]).astype(np.int64)
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], blocks)
    ids = np.repeat(owner, blocks) * (longest // block_tokens + 1) + place
    return PrefixHashes(ids.astype(np.int64), starts, block_tokens, covers_outputs=True)

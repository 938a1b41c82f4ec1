"""ShareGPT's JSON: conversations, of which the first two turns are a request and its answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from optimizer.errors import InputError
from optimizer.traces.layout import Source
from optimizer.traces.rows import Column, Rows
from optimizer.traces.values import show

CHARACTERS_PER_TOKEN = 4
"""The usual rule of thumb for English text; a tokenizer is not to be had without the model."""

_COUNTS = ("tokens", "num_tokens", "token_count")


def read_sharegpt(source: Source) -> Rows:
    """Read the first two turns of every conversation.

    A turn's length is its own field `tokens`, `num_tokens` or `token_count`; a conversation may give
    `prompt_tokens` and `output_tokens` beside its turns; else it is estimated as characters / 4, rounded
    up, which `Trace.note` says. A conversation with fewer than two turns is a bad row. There are no
    arrivals.

    Raises
    ------
    InputError
        If the file is no list, or, unless bad rows are skipped, at the first bad conversation.
    """
    prompts: list[Any] = []
    outputs: list[Any] = []
    lines: list[int] = []
    broken: list[tuple[int, str]] = []
    estimated = 0
    for place, (line, item) in enumerate(_elements(source)):
        try:
            prompt, output, guessed = _lengths(item)
        except ValueError as problem:
            field = f"[{place}].conversations"
            if not source.skip_bad_rows:
                raise InputError(str(problem), file=source.file, line=line, field=field) from None
            broken.append((line, f"field {field}: {problem}"))
            continue
        prompts.append(prompt)
        outputs.append(output)
        lines.append(line)
        estimated += guessed
    if not lines:
        line, why = broken[0] if broken else (1, "expected at least one conversation")
        raise InputError(f"there are no requests; {why}", file=source.file, line=line)
    note = "lengths alone: all requests arrive at 0 until arrivals are drawn"
    if estimated:
        note += (
            f"; the tokens of {estimated} conversations are estimated as characters / {CHARACTERS_PER_TOKEN}"
        )
    return Rows(
        source.file,
        lines,
        {"prompt_tokens": Column("first turn", prompts), "output_tokens": Column("second turn", outputs)},
        broken=broken,
        note=note,
    )


def _lengths(item: Any) -> tuple[Any, Any, bool]:
    if not isinstance(item, dict):
        raise ValueError(f"{show(item)}; expected an object")
    if "prompt_tokens" in item and "output_tokens" in item:
        return item["prompt_tokens"], item["output_tokens"], False
    turns = item.get("conversations", item.get("conversation"))
    if not isinstance(turns, list) or len(turns) < 2:
        count = f"{len(turns)} turns" if isinstance(turns, list) else show(turns)
        raise ValueError(f"{count}; expected a list of at least two turns")
    (prompt, one), (output, other) = _turn(turns[0]), _turn(turns[1])
    return prompt, output, one or other


def _turn(turn: Any) -> tuple[Any, bool]:
    """Give a turn's tokens, and whether they are an estimate."""
    if not isinstance(turn, dict):
        raise ValueError(f"{show(turn)}; expected a turn with a value")
    for name in _COUNTS:
        if name in turn:
            return turn[name], False
    text = turn.get("value", turn.get("content"))
    if not isinstance(text, str):
        raise ValueError(f"{show(text)}; expected the text of a turn in its value")
    return -(-len(text) // CHARACTERS_PER_TOKEN), True


def _elements(source: Source) -> Iterator[tuple[int, Any]]:
    """Give the elements of a JSON list one by one, each with the line that it starts in."""
    text, decode = source.text, json.JSONDecoder().raw_decode
    at, line = _skip(text, 0), 1
    line += text.count("\n", 0, at)
    if text[at : at + 1] != "[":
        raise InputError("expected a JSON list of conversations", file=source.file, line=line)
    closing = False
    while True:
        start = _skip(text, at + 1)
        line += text.count("\n", at + 1, start)
        if text[start : start + 1] == "]" and not closing:
            return
        try:
            item, end = decode(text, start)
        except (ValueError, RecursionError):
            raise InputError(
                "is no JSON from here on (is the file cut off?)", file=source.file, line=line
            ) from None
        yield line, item
        at = _skip(text, end)
        line += text.count("\n", start, at)
        if text[at : at + 1] == "]":
            return
        closing = True
        if text[at : at + 1] != ",":
            raise InputError(
                "expected a comma or the end of the list (is the file cut off?)", file=source.file, line=line
            )


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at

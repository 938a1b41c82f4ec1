"""Block hashes as files give them: lists, runs, unknown block sizes, ids that are not chained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import InputError
from optimizer.problem import PrefixHashes
from optimizer.problem.columns import MOST_TOKENS, Floats, Ints
from optimizer.traces.layout import HashLayout
from optimizer.traces.values import show

BLOCK_SIZES = (16, 32, 64, 128, 256, 512)
"""Block sizes that public traces use, among which an unnamed one is looked for."""

MOST_IDS = 10**7
"""Of one request; a run of billions of ids is a slip, and must not take the machine's memory."""

_NO_IDS = np.empty(0, np.int64)


@dataclass(slots=True)
class Hashes:
    """Block hashes by row, with the rows where they are bad.

    Attributes
    ----------
    name
        The file's word for the column.
    ids
        By row; empty where a row has none, or bad ones.
    sizes
        Number of ids by row.
    problems
        By row: what is wrong.
    block_tokens
        Where it is known: the caller's, the file's, the format's; else None.
    chained
        As in `HashLayout`.
    """

    name: str
    ids: list[Ints]
    sizes: Ints
    problems: dict[int, str]
    block_tokens: int | None
    chained: bool

    @property
    def bad(self) -> NDArray[np.bool_]:
        """Rows whose hashes are bad."""
        mask = np.zeros(len(self.ids), dtype=np.bool_)
        mask[list(self.problems)] = True
        return mask

    def problem(self, row: int) -> str:
        """Say what is wrong with a row."""
        return self.problems[row]

    def surplus(self, block_tokens: int) -> Callable[[int], str]:
        """Give the words for a row with more ids than its prompt has blocks."""
        return lambda row: (
            f"{self.sizes[row]} ids; the prompt has fewer blocks of {block_tokens} tokens than that"
        )

    def settle_block(self, prompt_tokens: Floats, good: NDArray[np.bool_], file: str) -> int:
        """Give the tokens per id, inferred from the good rows where nobody said it."""
        if self.block_tokens is not None:
            return self.block_tokens
        try:
            return infer_block_tokens(prompt_tokens[good], self.sizes[good])
        except InputError as error:
            raise InputError(error.problem, file=file, field=self.name) from None

    def laid_out(self, rows: Sequence[int], block_tokens: int) -> PrefixHashes:
        """Lay the ids of some rows end to end."""
        chosen = [self.ids[row] for row in rows]
        if not self.chained:
            chosen = chain_ids(chosen)
        starts = np.concatenate([[0], np.cumsum(self.sizes[list(rows)])]).astype(np.int64)
        return PrefixHashes(np.concatenate([_NO_IDS, *chosen]), starts, block_tokens)


def too_many(hashes: Hashes, prompt_tokens: Floats, block_tokens: int) -> NDArray[np.bool_]:
    """Mark the rows with more ids than blocks; the last, partial block may have one of its own."""
    return np.asarray(hashes.sizes > np.ceil(prompt_tokens / block_tokens), dtype=np.bool_)


def infer_block_tokens(prompt_tokens: NDArray[Any], sizes: NDArray[Any]) -> int:
    """Find the block size that explains the number of ids of every prompt.

    Files count either the full blocks of a prompt or the partial last one too, the same way in all rows.

    Raises
    ------
    InputError
        If none of `BLOCK_SIZES` fits, or several do.

    Examples
    --------
    >>> infer_block_tokens(np.array([6758, 7322]), np.array([14, 15]))
    512
    """
    fits = [
        size
        for size in BLOCK_SIZES
        if np.array_equal(sizes, prompt_tokens // size) or np.array_equal(sizes, -(-prompt_tokens // size))
    ]
    if len(fits) == 1:
        return fits[0]
    why = f"several block sizes fit ({', '.join(map(str, fits))})" if fits else "no usual block size fits"
    raise InputError(
        f"{why} the numbers of ids; name the tokens per id (hash_block_tokens, --hash-block-tokens)"
    )


def chain_ids(lists: Sequence[Ints]) -> list[Ints]:
    """Renumber ids so that equal ids mean equal blocks after an equal prefix.

    >>> [a.tolist() for a in chain_ids([np.array([7, 8]), np.array([9, 8]), np.array([7, 8])])]
    [[0, 1], [2, 3], [0, 1]]
    """
    names: dict[tuple[int, int], int] = {}
    chained = []
    for ids in lists:
        parent, path = -1, []
        for block in ids.tolist():
            parent = names.setdefault((parent, block), len(names))
            path.append(parent)
        chained.append(np.array(path, dtype=np.int64))
    return chained


def read_hashes(
    layout: HashLayout, values: Sequence[Any], blocks: Sequence[Any] | None, given: int | None, file: str
) -> Hashes:
    """Parse the hashes of all rows.

    Parameters
    ----------
    layout
        Where and how they stand.
    values
        By row.
    blocks
        The column that gives the block size, if the file has it.
    given
        The caller's word on the block size, which wins.
    file
        For error messages.

    Raises
    ------
    InputError
        If rows differ in their block size.
    """
    parse = {"ids": _from_list, "runs": _from_runs, "text": _from_text}[layout.form]
    ids: list[Ints] = []
    problems: dict[int, str] = {}
    for row, value in enumerate(values):
        try:
            ids.append(_NO_IDS if value is None else parse(value))
        except (TypeError, ValueError, OverflowError):
            ids.append(_NO_IDS)
            problems[row] = f"{show(value)}; expected {_EXPECTED[layout.form]}"
    block_tokens = given or _stated(blocks, layout, file) or layout.block_tokens
    sizes = np.array([len(i) for i in ids], dtype=np.int64)
    return Hashes(layout.key, ids, sizes, problems, block_tokens, layout.chained)


_EXPECTED = {
    "ids": "a list of whole numbers >= 0",
    "runs": "a list of [first, last] pairs of whole numbers >= 0",
    "text": "whole numbers and runs of them, such as 0-12 17",
}


def _from_list(value: Any) -> Ints:
    if not isinstance(value, list) or not set(map(type, value)) <= {int} or (value and min(value) < 0):
        raise ValueError
    return np.array(value, dtype=np.int64)


def _from_runs(value: Any) -> Ints:
    if not isinstance(value, list):
        raise ValueError
    room, runs = MOST_IDS, []
    for first, last in value:
        if type(first) is not int or type(last) is not int or not 0 <= first <= last:
            raise ValueError
        room -= last - first + 1
        if room < 0:
            raise ValueError
        runs.append(np.arange(first, last + 1, dtype=np.int64))
    return np.concatenate([_NO_IDS, *runs])


def _from_text(value: Any) -> Ints:
    runs = []
    for part in value.split():
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError
        runs.append([int(first), int(last) if dash else int(first)])
    return _from_runs(runs)


def _stated(blocks: Sequence[Any] | None, layout: HashLayout, file: str) -> int | None:
    stated = {str(b) for b in blocks or () if b is not None and b != ""}
    if not stated:
        return None
    if len(stated) > 1 or not (one := stated.pop()).isdecimal() or not 1 <= int(one) <= MOST_TOKENS:
        raise InputError(
            "expected one whole number >= 1, the same in all rows", file=file, field=layout.block_key
        )
    return int(one)

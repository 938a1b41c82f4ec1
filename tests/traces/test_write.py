"""What is written is read back the same."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.errors import InputError
from optimizer.problem import LengthKnowledge, PrefixHashes, Requests
from optimizer.traces import embedded, embedded_names, read_trace, write_csv

MOMENTS = st.floats(0, 1e9, allow_nan=False)
# A NUL makes a file binary, and a lone surrogate is no text.
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8)


@st.composite
def requests(draw: st.DrawFn) -> Requests:
    n = draw(st.integers(1, 12))

    def column(values: st.SearchStrategy[Any], unique: bool = False) -> list[Any]:
        return draw(st.lists(values, min_size=n, max_size=n, unique=unique))

    output = np.array(column(st.integers(1, 10**8)))
    columns: dict[str, Any] = {
        "arrival_s": [0.0, *sorted(column(MOMENTS)[1:])],
        "prompt_tokens": column(st.integers(1, 10**8)),
        "output_tokens": output,
    }
    known = prefix = None
    if draw(st.booleans()):
        columns |= {"ids": column(NAMES, unique=True), "tenant": column(st.just("") | NAMES)}
    if draw(st.booleans()):
        columns |= {"max_output_tokens": np.full(n, 10**8), "weight": column(MOMENTS)}
    if draw(st.booleans()):
        columns |= {
            name: column(MOMENTS | st.just(np.nan)) for name in ("deadline_s", "ttft_slo_s", "tpot_slo_s")
        }
    if draw(st.booleans()):
        known = LengthKnowledge(
            np.ones(n, np.int64), output, np.array(column(MOMENTS)), np.array(column(MOMENTS))
        )
    if draw(st.booleans()):
        block = draw(st.integers(1, 600))
        columns["prompt_tokens"] = np.maximum(columns["prompt_tokens"], 8 * block)
        lists = column(st.lists(st.integers(0, 2**63 - 1), max_size=8))
        starts = np.cumsum([0, *map(len, lists)])
        prefix = PrefixHashes(np.array([i for ids in lists for i in ids], dtype=np.int64), starts, block)
    try:
        return Requests.from_columns(columns, known=known, prefix=prefix)
    except InputError:
        # Prompts of more than 10**8 tokens, by the blocks above.
        return Requests.from_columns({"prompt_tokens": [1], "output_tokens": [1]})


def assert_same(a: Any, b: Any) -> None:
    if dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        assert a == b


@given(requests())
def test_requests_come_back_as_they_were_written(r: Requests) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "r.csv")
        write_csv(r, path)
        trace = read_trace(path)
    assert trace.format == "compact"
    assert trace.has_arrivals is bool(r.arrival_s.any())
    assert_same(r, trace.requests)


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    r = Requests.from_columns({"prompt_tokens": [1], "output_tokens": [1]})
    with pytest.raises(InputError, match="cannot be written"):
        write_csv(r, tmp_path / "none" / "r.csv")
    write_csv(r, tmp_path / "r.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["r.csv"]
    assert (tmp_path / "r.csv").read_text() == "prompt_tokens,output_tokens\n1,1\n"


def test_gsm8k_is_shipped_whole() -> None:
    trace = embedded("gsm8k/gsm8k-1319")
    r = trace.requests
    assert (len(r), int(r.prompt_tokens.sum()), int(r.output_tokens.sum())) == (1319, 88_939, 176_663)
    assert not trace.has_arrivals


def test_everything_that_is_shipped_can_be_read() -> None:
    for name in embedded_names():
        assert len(embedded(name).requests) > 0


@pytest.mark.parametrize("name", ["gsm8k", "../pyproject", "gsm8k/gsm8k-1319.csv"])
def test_what_is_not_shipped_is_told_with_what_is(name: str) -> None:
    with pytest.raises(InputError, match=r"is not shipped; .*gsm8k/gsm8k-1319"):
        embedded(name)

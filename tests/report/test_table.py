from __future__ import annotations

import io

import pytest
from rich.console import Console

from optimizer.report.table import Column, Table, figure, two_columns

COLUMNS = (
    Column("name", "name"),
    Column("fast", "speed", "1/s", "high"),
    Column("late", "delay", "ms", "low", 1e3),
    Column("same", "same", "", "low"),
)
ROWS = (
    {"name": "a", "fast": 10.0, "late": 0.5, "same": 1},
    {"name": "bb", "fast": 20.0, "late": None, "same": 1},
    {"name": "c", "fast": 20.0, "late": 0.25, "same": 1, "late_ci": 0.05},
)


def test_lines_are_aligned_and_the_best_are_marked():
    text = Table(COLUMNS, ROWS).plain()
    lines = text.splitlines()
    assert len({len(line) for line in lines[1:]}) == 1
    assert text.count("20.0*") == 2, "all of the best"
    assert "250 ±50.0*" in text
    assert "1*" not in text, "where all are equal none is best"
    assert lines[4].split() == ["bb", "20.0*", "-", "1"]


def test_columns_that_do_not_fit_go_into_a_block_below():
    narrow = Table(COLUMNS, ROWS, title="a title").plain(24)
    assert narrow.startswith("a title\n\n")
    assert narrow.count("name") > 1
    assert max(map(len, narrow.splitlines())) <= 24


@pytest.mark.parametrize("width", [30, 37, 44, 60, 120])
def test_rich_tables_fit_the_terminal(width):
    console = Console(width=width, record=True, file=io.StringIO())
    for part in Table(COLUMNS, ROWS, title="t").rich(width):
        console.print(part)
    text = console.export_text()
    assert "…" not in text
    assert "250 ±50.0*" in text


def test_a_table_without_rows_is_its_head():
    assert "speed" in Table(COLUMNS, ()).plain()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (float("nan"), "-"), (0, "0"), (0.0, "0"), (1234567, "1,234,567"), (9.999, "10.0"), (99.96, "100"),
     (0.0061234, "0.00612"), (-0.5, "-0.500"), (1e-12, "0.000000000"), ("text", "text")],
)  # fmt: skip
def test_figures_have_three_digits(value, text):
    assert figure(value) == text


def test_two_columns_are_aligned():
    assert two_columns([("a", "x"), ("bbb", "y")]) == "a    x\nbbb  y"

from __future__ import annotations

import io
from dataclasses import replace

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


def test_what_nobody_sees_makes_no_difference():
    rows = [{"name": "a", "fast": 10.001}, {"name": "b", "fast": 10.002}, {"name": "c", "fast": 9.0}]
    assert Table(COLUMNS[:2], rows).plain().count("10.0*") == 2
    assert "*" not in Table(COLUMNS[:2], rows[:2]).plain()


def test_columns_of_high_rank_give_way_where_the_terminal_is_narrow():
    columns = [replace(column, rank=rank) for column, rank in zip(COLUMNS, (0, 2, 0, 1), strict=True)]
    kept = [[c.key for c in Table(columns, ROWS).fitting(width).columns] for width in (99, 36, 26, 5)]
    assert kept == [
        ["name", "fast", "late", "same"],
        ["name", "late", "same"],
        ["name", "late"],
        ["name", "late"],
    ]


@pytest.mark.parametrize("width", [26, 30, 37, 44, 60, 120])
def test_rich_tables_fit_the_terminal(width):
    console = Console(width=width, record=True, file=io.StringIO())
    columns = [replace(column, rank=column.key != "late") for column in COLUMNS]
    console.print(Table(columns, ROWS, title="t").fitting(width).rich())
    text = console.export_text()
    assert "…" not in text
    assert "250 ±50.0*" in text
    assert max(map(len, text.splitlines())) <= width


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


def test_two_columns_break_lines_below_the_text():
    wrapped = two_columns([("name", "some words that are too long"), ("", "more")], 30)
    assert wrapped.splitlines() == ["name  some words that are too", "      long", "      more"]
    assert two_columns([("name", "x " * 40)], 20).count("\n") == 0, "no room to break lines in"

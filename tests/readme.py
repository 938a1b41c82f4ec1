"""The tables of the README, made from what the commands give: `python tests/readme.py` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
_DEMO = re.compile(r"(<!-- demo table[^\n]*-->\n).*?(\n<!-- end of demo table -->)", re.DOTALL)


def demo_table() -> str:
    """Give the demo's first table with fewer columns, the best of each column bold."""
    from optimizer.cli.demo import questions
    from optimizer.comparison import compare

    rows = compare(questions(), sort="makespan_s").rows
    columns = [
        ("output tok/s", "output_tokens_per_s", 1, "{:,.0f}", max),
        ("makespan s", "makespan_s", 1, "{:.1f}", min),
        ("TTFT mean s", "ttft_mean_s", 1, "{:.1f}", min),
        ("TTFT p99 s", "ttft_p99_s", 1, "{:.1f}", min),
        ("TPOT mean ms", "tpot_mean_s", 1000, "{:.1f}", min),
        ("E2E mean s", "e2e_mean_s", 1, "{:.1f}", min),
        ("E2E p99 s", "e2e_p99_s", 1, "{:.1f}", min),
        ("KV use %", "kv_use_mean", 100, "{:.1f}", None),
        ("preemptions", "preemptions", 1, "{:.0f}", None),
    ]
    lines = ["| policy | " + " | ".join(c[0] for c in columns) + " |", "|---|" + "---:|" * len(columns)]
    shown = [[form.format(row[key] * factor) for _, key, factor, form, _ in columns] for row in rows]
    for place, (_, key, _, _, best) in enumerate(columns):
        if best:
            winner = shown[[row[key] for row in rows].index(best(row[key] for row in rows))][place]
            for cells in shown:
                cells[place] = f"**{cells[place]}**" if cells[place] == winner else cells[place]
    lines += [
        f"| `{row['policy']}` | " + " | ".join(cells) + " |" for row, cells in zip(rows, shown, strict=True)
    ]
    return "\n".join(lines)


def table_in_readme() -> str:
    """Give the demo table as the README has it."""
    found = _DEMO.search(README.read_text(encoding="utf-8"))
    assert found, "the README has no demo table"
    return found.group(0)[len(found.group(1)) : -len(found.group(2))]


def python_blocks() -> list[str]:
    """Give the Python code of the README, block by block."""
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(_DEMO.sub(lambda m: m.group(1) + demo_table() + m.group(2), text), encoding="utf-8")

"""The tables of the README, made from what the commands give: `python tests/readme.py` writes them anew."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
_RECORD = Path(__file__).resolve().parent / "accuracy" / "record.yaml"
_LABELS = {
    "llama3.1-8b-bf16-azure-conv-20rps": "llama3.1-8b, Azure conversations at 20 req/s",
    "llama3.1-8b-bf16-sharegpt-offline": "llama3.1-8b, ShareGPT offline",
    "llama3.1-8b-bf16-gsm8k-s200": "llama3.1-8b, GSM8K, 200 seats ¹",
    "llama-65b-fp8-gsm8k-s200": "llama-65b-fp8, GSM8K, 200 seats, KV pressure ¹",
}


def _between(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}[^\n]*-->\n).*?(\n<!-- end of {name} -->)", re.DOTALL)


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


def accuracy_table() -> str:
    """Give the errors over whole runs that are on record."""
    import yaml

    runs = yaml.safe_load(_RECORD.read_text(encoding="utf-8"))["runs"]
    columns = ("wall", "e2e_mean", "e2e_p50", "ttft_mean", "ttft_p99", "preemptions")
    lines = [
        "| run | wall time | end-to-end mean | p50 | TTFT mean | p99 | preemptions |",
        "|---|" + "---:|" * len(columns),
    ]
    for run, label in _LABELS.items():
        cells = (f"{100 * runs[run][name]['error']:+.1f} %".replace("-", "−") for name in columns)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {"demo table": demo_table, "accuracy table": accuracy_table}


def table_in_readme(name: str) -> str:
    """Give a table as the README has it."""
    found = _between(name).search(README.read_text(encoding="utf-8"))
    assert found, f"the README has no {name}"
    return found.group(0)[len(found.group(1)) : -len(found.group(2))]


def python_blocks() -> list[str]:
    """Give the Python code of the README, block by block."""
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    for name, made in TABLES.items():
        table = made()
        text = _between(name).sub(lambda m, table=table: m.group(1) + table + m.group(2), text)
    README.write_text(text, encoding="utf-8")

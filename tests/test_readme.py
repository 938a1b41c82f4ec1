"""The README says what is true: its code runs, its table is what the demo prints, its files are there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import pytest
import readme


@pytest.mark.parametrize("name", readme.TABLES)
def test_the_tables_are_what_the_commands_give(name):
    """`python tests/readme.py` writes them anew."""
    assert readme.table_in_readme(name) == readme.TABLES[name]()


def test_the_code_runs_and_the_policy_keeps_the_rules(monkeypatch):
    """All blocks in order, as a reader would type them; then the policy is simulated, in both modes, and checked."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    import optimizer
    from optimizer.check import check
    from optimizer.policies import base

    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    names: dict = {"__name__": "__main__"}
    for block in readme.python_blocks():
        exec(compile(block, "README.md", "exec", dont_inherit=True), names)
    fast = optimizer.simulate(names["instance"], "last-come-first-served")
    slow = optimizer.simulate(names["instance"], "last-come-first-served", step_by_step=True)
    assert (fast.schedule.finish_s == slow.schedule.finish_s).all()
    assert check(fast.schedule, names["instance"]).ok
    assert fast.metrics.preemptions.sum() == 0


def test_links_lead_to_files():
    """Every relative link of the README names something in the repository."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme.README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (readme.README.parent / link).exists()] == []

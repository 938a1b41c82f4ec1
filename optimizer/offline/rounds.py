"""Instances in equal rounds: searched and bounded as KV ramps, executed by the simulator like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optimizer.offline.solve import _Solve


def solve_rounds(run: _Solve) -> None:
    """Search starting rounds until the time is up."""
    raise NotImplementedError

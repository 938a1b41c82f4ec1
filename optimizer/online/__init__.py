"""Online scheduling: `RollingHorizon`, which a serving loop asks what to compute next.

Names are imported when they are first used: the solver's process needs none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizer.online.aio import AsyncHorizon as AsyncHorizon
    from optimizer.online.horizon import RollingHorizon as RollingHorizon
    from optimizer.online.messages import Admission as Admission
    from optimizer.online.messages import Request as Request
    from optimizer.online.messages import Step as Step
    from optimizer.online.stats import Stats as Stats

_HOME_OF = {
    "Admission": "messages",
    "AsyncHorizon": "aio",
    "Request": "messages",
    "RollingHorizon": "horizon",
    "Stats": "stats",
    "Step": "messages",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'optimizer.online' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"optimizer.online.{_HOME_OF[name]}"), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})

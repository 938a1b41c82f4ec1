"""The reference mode: every step by itself, every request by itself, no closed form and no counter by offset."""

from __future__ import annotations

from optimizer.simulator.loop import Loop
from optimizer.simulator.state import NEVER, EngineState


class ReferenceState(EngineState):
    """Engine state that knows each decoding request's tokens and counts everything anew when asked.

    The verbs of a policy are the same; how contexts, blocks and finishes are kept is not.
    """

    __slots__ = ("decoding", "tokens_out")


class ReferenceLoop(Loop):
    pass

"""Orca: iteration-level batching in order of arrival, with KV reserved for a request's longest life."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.errors import InputError
from optimizer.policies.base import Policy, register
from optimizer.simulator.reserve import Reservations
from optimizer.simulator.state import EngineState


@dataclass
class Orca(Policy):
    """Orca's mechanism; how much is reserved is the subclass's choice.

    Every iteration: newcomers in order of arrival as long as a seat and a reservation can be had, the first
    failure ends the scan; their prompts run whole, beside all decodes. Nothing is ever preempted.

    `contiguous`: reservations lie in one piece and fragment, as in the engines of that time.
    Sources: Orca, OSDI 2022; microsoft/vidur `orca_replica_scheduler.py`; the three variants are those of
    the PagedAttention paper, SOSP 2023.
    """

    contiguous: bool = True

    pages = False
    has_budget = False

    def start(self, state: EngineState) -> None:
        """Set up the memory."""
        self.memory = Reservations(state, contiguous=self.contiguous)

    def reservation(self, state: EngineState, request: int) -> int:
        """Give the tokens to reserve."""
        raise NotImplementedError

    def step(self, state: EngineState) -> None:
        """Compose the next step."""
        s = state
        while s.waiting and s.free_seats() > 0:
            request = s.waiting.head()
            if not self.memory.start(request, self.reservation(s, request)):
                break
        s.deaf = bool(s.waiting)

    def finished(self, state: EngineState, request: int) -> None:
        """Free the reservation."""
        self.memory.give_back(request)


def exact_length(state: EngineState, request: int, who: str) -> int:
    """Give a request's output tokens where they are known exactly.

    Raises
    ------
    InputError
        Where they are not.
    """
    if state.low is None or state.high is None or state.low[request] != state.high[request]:
        raise InputError(
            f"{who} reserves by the exact output length, and that of request {state.requests.name(request)} is not "
            "known; make lengths known exactly, or leave this policy out",
            field="lengths",
        )
    return state.high[request]


@register("orca-max")
@dataclass
class OrcaMax(Orca):
    """Orca that reserves the longest sequence the model allows for every request.

    That is `max_sequence_tokens`, or the engine's model length where requests may be longer.
    """

    max_sequence_tokens: int = 2048

    def __post_init__(self) -> None:
        self.demand("max_sequence_tokens", self.max_sequence_tokens >= 1, "at least 1")

    def start(self, state: EngineState) -> None:
        """Look the model's length up."""
        super().start(state)
        self._length = max(self.max_sequence_tokens, state.model_len)

    def reservation(self, state: EngineState, request: int) -> int:
        """Give the tokens to reserve."""
        return self._length


@register("orca-pow2")
@dataclass
class OrcaPow2(Orca):
    """Orca that reserves the output's length rounded up to a power of two (needs exact lengths)."""

    def reservation(self, state: EngineState, request: int) -> int:
        """Give the tokens to reserve."""
        output = exact_length(state, request, self.name)
        return state.prompt_tokens[request] + (1 << (output - 1).bit_length())


@register("orca-oracle")
@dataclass
class OrcaOracle(Orca):
    """Orca that reserves exactly what a request will need (needs exact lengths)."""

    def reservation(self, state: EngineState, request: int) -> int:
        """Give the tokens to reserve."""
        return state.prompt_tokens[request] + exact_length(state, request, self.name)

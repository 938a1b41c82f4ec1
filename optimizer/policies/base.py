"""What a policy is, and the registry by which it is found."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, TypeVar

from optimizer.errors import InputError
from optimizer.simulator.queues import FifoQueue, WaitingQueue
from optimizer.simulator.state import EngineState


@dataclass
class Policy:
    """Decides the next step from what is visible now.

    A subclass is a dataclass whose fields are its options, with defaults. It writes `step`, and `queue` if
    waiting requests are not served in order of arrival.

    Class attributes
    ----------------
    name
        Set by `register`.
    block_tokens
        KV granularity of the system, or None: the engine's.
    pages
        Whether KV is paged. If not, the policy keeps reservations of its own (`optimizer.simulator.reserve`).
    has_budget
        Whether the system knows a token budget per step (`max_num_batched_tokens`).
    asks_always
        Whether `step` must also be called when nothing waits, nobody prefills and KV is plentiful; other
        policies then decode on without being asked.
    seed
        Set by `simulate` before `start`, for policies that draw random numbers.
    """

    name: ClassVar[str] = ""
    block_tokens: ClassVar[int | None] = None
    pages: ClassVar[bool] = True
    has_budget: ClassVar[bool] = True
    asks_always: ClassVar[bool] = False
    seed = 0

    def demand(self, option: str, holds: bool, expected: str) -> None:
        """Refuse an option that is out of range; for `__post_init__`."""
        if not holds:
            raise InputError(
                f"{getattr(self, option)!r} for {self.name}'s {option}; expected {expected}",
                field="policy-option",
            )

    def start(self, state: EngineState) -> None:
        """Prepare for a run; called once, before anything arrives."""

    def margin_tokens(self, state: EngineState) -> int:
        """Give the KV tokens that must stay free beyond what a step takes, where the system keeps a watermark.

        As long as more is free, the simulator spares the policy from counting blocks (`state.tight`).
        """
        return 0

    def queue(self, state: EngineState) -> WaitingQueue:
        """Give the queue in which requests wait."""
        return FifoQueue()

    def step(self, state: EngineState) -> None:
        """Compose the next step: see `EngineState`."""
        raise NotImplementedError

    def finished(self, state: EngineState, request: int) -> None:
        """Learn that a request is done: its length is known now (`state.generated`)."""

    @classmethod
    def hears_finishes(cls) -> bool:
        """Say whether a subclass has a `finished` of its own."""
        return cls.finished is not Policy.finished


P = TypeVar("P", bound=type[Policy])
_REGISTRY: dict[str, type[Policy] | str] = {}
"""By name: the class, or the module that registers it and is imported when it is first asked for."""


def register_later(name: str, module: str) -> None:
    """Make a policy known by a name whose module imports more than a policy should, until it is used."""
    _REGISTRY.setdefault(name, module)


def register(name: str) -> Callable[[P], P]:
    """Make a policy known by a name, for the command line and for `make_policy`.

    Registering the same class again (a notebook cell run twice) replaces it.

    Raises
    ------
    ValueError
        If another class has the name, or an option has no default.
    """

    def enter(policy: P) -> P:
        if not _may_be(policy, _REGISTRY.get(name)):
            raise ValueError(f"two policies are called {name!r}")
        for field in dataclasses.fields(policy):
            if field.default is dataclasses.MISSING:
                raise ValueError(f"option {field.name!r} of {name!r} has no default; give it one")
        policy.name = name
        _REGISTRY[name] = policy
        return policy

    return enter


def _may_be(policy: type[Policy], other: type[Policy] | str | None) -> bool:
    if other is None or isinstance(other, str):
        return other in (None, policy.__module__)
    return (other.__module__, other.__qualname__) == (policy.__module__, policy.__qualname__)


def policy_names() -> tuple[str, ...]:
    """Give the names of all policies."""
    return tuple(_REGISTRY)


def policy_class(name: str) -> type[Policy]:
    """Find a policy by its name.

    Raises
    ------
    InputError
        If there is none; the message names the nearest.
    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, _REGISTRY, n=3) or list(_REGISTRY)
        raise InputError(f"there is no policy {name!r}; did you mean {', '.join(near)}?", field="policy")
    found = _REGISTRY[name]
    if isinstance(found, str):
        import_module(found)
        found = _REGISTRY[name]
    assert not isinstance(found, str)
    return found


def make_policy(name: str, **options: Any) -> Policy:
    """Build a policy by name.

    Parameters
    ----------
    name
        One of `policy_names()`.
    options
        Its dataclass fields; text is converted to the type of the default.

    Raises
    ------
    InputError
        On an unknown name or option, or a value of the wrong kind.

    Examples
    --------
    >>> make_policy("vllm-v1", long_prefill_token_threshold="256").long_prefill_token_threshold
    256
    """
    cls = policy_class(name)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    given: dict[str, Any] = {}
    for option, value in options.items():
        if option not in fields:
            known = ", ".join(f"{f.name}={f.default}" for f in fields.values()) or "none"
            raise InputError(f"{name} has no option {option!r}; it has: {known}", field="policy-option")
        given[option] = _convert(name, option, value, fields[option].default)
    return cls(**given)


def _convert(name: str, option: str, value: Any, default: Any) -> Any:
    kind = type(default)
    if isinstance(value, str) and kind is bool:
        if value.lower() in ("true", "yes", "1", "false", "no", "0"):
            return value.lower() in ("true", "yes", "1")
    else:
        try:
            converted = kind(value)
            if isinstance(value, str) or converted == value:
                return converted
        except (TypeError, ValueError):
            pass
    raise InputError(
        f"{value!r} for {name}'s {option}; expected {kind.__name__}, such as {default!r}",
        field="policy-option",
    )


def describe(name: str) -> str:
    """Give the first line of a policy's docstring."""
    return ((policy_class(name).__doc__ or "").strip().splitlines() or [""])[0]


def options_of(name: str) -> dict[str, Any]:
    """Give the options of a policy with their defaults."""
    return {f.name: f.default for f in dataclasses.fields(policy_class(name))}

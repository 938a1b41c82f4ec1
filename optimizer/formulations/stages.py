"""Bins of one prefill and one decode stage: the setting of arXiv 2502.15763, its heuristics and its work bound.

All clients share the GPU. In a prefill stage the prompts of some requests are computed while everybody who decodes
waits; a decode stage is a number of rounds in which every client that holds an unfinished request gets a token. A
client holds one request from its prefill to its last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from optimizer.capacity.step_time import StepClock
from optimizer.errors import InputError
from optimizer.problem.instance import Instance
from optimizer.units import seconds


@dataclass(frozen=True, slots=True)
class Bin:
    """A prefill stage and the rounds that follow it.

    Attributes
    ----------
    prefill
        Requests whose prompts are computed, ascending rows.
    rounds
        Decode rounds.
    """

    prefill: tuple[int, ...]
    rounds: int


@dataclass(frozen=True, slots=True)
class Stages:
    """Requests, clients, and how long stages take.

    Attributes
    ----------
    prompt, output
        Tokens, by request; each output token takes a decode round.
    clients
        Requests that can be under way at once.
    round_s
        A decode round.
    levels
        (tokens, seconds) of a prefill stage, ascending in both: a stage takes the time of the least level that its
        prompts fit into.
    kv_tokens
        KV memory; None: it does not bind.

    Raises
    ------
    InputError
        On a number out of range, or a request that never fits: names it and what would be enough.

    Examples
    --------
    >>> toy = Stages((60, 50), (3, 9), clients=2, round_s=1.0, levels=((64, 2.0), (128, 3.0)))
    >>> toy.seconds(toy.eager())
    12.0
    """

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    clients: int
    round_s: float
    levels: tuple[tuple[int, float], ...]
    kv_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.prompt or len(self.prompt) != len(self.output):
            raise InputError(
                f"{len(self.prompt)} prompts and {len(self.output)} outputs; expected as many, and one at least"
            )
        if min(self.prompt) < 1 or min(self.output) < 1 or self.clients < 1 or not self.round_s > 0:
            raise InputError("prompts, outputs and clients are whole numbers >= 1, round_s is above 0")
        rising = all(a < c and b < d for (a, b), (c, d) in zip(self.levels, self.levels[1:], strict=False))
        if not self.levels or not rising or not self.levels[0][1] > 0:
            raise InputError(f"levels are {self.levels}; expected (tokens, seconds > 0), ascending in both")
        longest = max(range(len(self.prompt)), key=self.prompt.__getitem__)
        if self.prompt[longest] > self.levels[-1][0]:
            raise InputError(
                f"request {longest} has {self.prompt[longest]} prompt tokens and the largest prefill level {self.levels[-1][0]}; "
                "add a level that holds it, or shorten the prompt"
            )
        if self.kv_tokens is not None:
            most = max(range(len(self.prompt)), key=lambda i: self.prompt[i] + self.output[i])
            if self.prompt[most] + self.output[most] > self.kv_tokens:
                raise InputError(
                    f"request {most} holds {self.prompt[most] + self.output[most]} tokens at its end and kv_tokens is "
                    f"{self.kv_tokens}; give it as many, or leave the request out"
                )

    @classmethod
    def from_instance(cls, instance: Instance, *, clients: int | None = None, kv: bool = False) -> Self:
        """Read stages off an engine that runs prefill and decode by turns.

        Levels are powers of two up to the token budget, each as long as a prefill step of so many tokens in prompts
        of the mean length; a round is a decode step of all clients at their mean context. Default: as many clients
        as seats.
        """
        requests, engine = instance.requests, instance.engine
        n_clients = min(engine.max_num_seqs, len(requests)) if clients is None else clients
        clock = StepClock(engine.step_time)
        mean = float(requests.prompt_tokens.mean())
        context = mean + float(requests.output_tokens.mean()) / 2
        sizes = {64 << power for power in range(30) if 64 << power < engine.max_num_batched_tokens}
        levels: list[tuple[int, float]] = []
        for tokens in sorted(sizes | {engine.max_num_batched_tokens}):
            prompts = max(1, round(tokens / mean))
            time = seconds(clock.step(tokens, round(tokens * (tokens / prompts + 1) / 2), prompts, tokens))
            if levels and time <= levels[-1][1]:
                levels.pop()  # as fast and larger
            levels.append((tokens, time))
        return cls(
            tuple(requests.prompt_tokens.tolist()),
            tuple(requests.output_tokens.tolist()),
            n_clients,
            seconds(clock.step(decode_seqs=n_clients, decode_context=round(n_clients * context))),
            tuple(levels),
            engine.kv_tokens if kv else None,
        )

    def level_of(self, tokens: int) -> int:
        """Give the least level that holds so many tokens.

        Raises
        ------
        InputError
            If none does.
        """
        for level, (most, _) in enumerate(self.levels):
            if tokens <= most:
                return level
        raise InputError(f"no prefill level holds {tokens} tokens; the largest holds {self.levels[-1][0]}")

    def prefill_s(self, rows: Sequence[int]) -> float:
        """Give the time of a prefill stage of these requests."""
        return self.levels[self.level_of(sum(self.prompt[i] for i in rows))][1]

    def seconds(self, bins: Sequence[Bin]) -> float:
        """Give the makespan of a plan."""
        return sum(self.prefill_s(one.prefill) + self.round_s * one.rounds for one in bins)

    def occupancy(self, bins: Sequence[Bin]) -> float:
        """Give the share of client-time spent on a client's own request: its prefill stage and its rounds."""
        own = self.round_s * sum(self.output) + sum(len(b.prefill) * self.prefill_s(b.prefill) for b in bins)
        return own / (self.clients * self.seconds(bins))

    def check(self, bins: Sequence[Bin]) -> None:
        """Refuse what is no plan.

        Raises
        ------
        InputError
            If a request is not prefilled once and decoded to its end, or a bin has no prompt, more requests than clients, more
            prompts than the largest level holds, or more KV than there is (each request counted to its end in the bin).
        """
        if sorted(i for one in bins for i in one.prefill) != list(range(len(self.prompt))):
            raise InputError("the plan does not prefill every request once")
        left: dict[int, int] = {}
        for k, one in enumerate(bins):
            if not one.prefill:
                raise InputError(f"bin {k} of the plan has no prompt; give its rounds to the bin before")
            left |= {i: self.output[i] for i in one.prefill}
            self.prefill_s(one.prefill)
            held = sum(
                self.prompt[i] + self.output[i] - max(0, tokens - one.rounds) for i, tokens in left.items()
            )
            if len(left) > self.clients or (self.kv_tokens is not None and held > self.kv_tokens):
                raise InputError(
                    f"bin {k} of the plan has {len(left)} requests with {held} tokens; there are "
                    f"{self.clients} clients and {self.kv_tokens} KV tokens"
                )
            left = {i: tokens - one.rounds for i, tokens in left.items() if tokens > one.rounds}
        if left:
            raise InputError(f"the plan ends before request {min(left)} does")

    @property
    def work_bound(self) -> float:
        """No plan is shorter than all decode work on all clients and all prompts at the best rate of a level."""
        decode = self.round_s * sum(self.output) / self.clients
        return decode + sum(self.prompt) * min(time / tokens for tokens, time in self.levels)

    def eager(self, order: Sequence[int] | None = None, patience: float | None = None) -> tuple[Bin, ...]:
        """Plan by a rule: whenever a client is free, prefill the next requests of an order, or first decode on.

        Parameters
        ----------
        order
            All requests; by default as they stand. A prompt that does not fit into the stage ends the choice.
        patience
            None: prefill at once. Else the cost rule of arXiv 2502.15763 with this weight lambda: prefill if what the busy
            clients lose meanwhile is at most lambda times what the free ones lose until the next request ends.
        """
        waiting = list(range(len(self.prompt)) if order is None else order)
        left: dict[int, int] = {}
        bins: list[Bin] = []
        while waiting or left:
            chosen = self._next(waiting, left)
            release = min(left.values(), default=0)
            if chosen and (patience is None or self._worth_it(chosen, len(left), release, patience)):
                waiting = waiting[len(chosen) :]
                left |= {i: self.output[i] for i in chosen}
                bins.append(Bin(tuple(sorted(chosen)), 0))
                continue
            bins[-1] = Bin(bins[-1].prefill, bins[-1].rounds + release)
            left = {i: tokens - release for i, tokens in left.items() if tokens > release}
        return tuple(bins)

    def _worth_it(self, chosen: list[int], busy: int, release: int, patience: float) -> bool:
        return busy * self.prefill_s(chosen) <= patience * len(chosen) * self.round_s * release or not busy

    def _next(self, waiting: list[int], left: dict[int, int]) -> list[int]:
        chosen: list[int] = []
        for i in waiting[: self.clients - len(left)]:
            tokens = sum(self.prompt[r] for r in [*chosen, i])
            held = sum(self.prompt[r] + self.output[r] for r in [*left, *chosen, i])
            if tokens > self.levels[-1][0] or (self.kv_tokens is not None and held > self.kv_tokens):
                break
            chosen.append(i)
        return chosen

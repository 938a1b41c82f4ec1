"""The engine: an LLM on GPUs, as a scheduler sees it: KV blocks, limits per step, and what a step costs."""

from __future__ import annotations

from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from optimizer.units import ticks

Seconds = float

MOST_BLOCK_TOKENS = 1 << 20
"""Real engines page by 1 to 1,024 tokens; the simulator counts requests by their offset within a block."""


class Frozen(BaseModel):
    """What crosses the edge: validated once, then unchangeable; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool):
            kind = cls.model_fields[str(info.field_name)].annotation
            if {int, float} & {kind, *get_args(kind)}:
                raise ValueError("Input should be a number, not true or false")
        return value


class StepPiece(Frozen):
    """One affine function of what a step computes; every coefficient in seconds per unit.

    Attributes
    ----------
    base_s
        A step that computes nothing.
    per_prefill_token_s
        A prompt token computed in the step.
    per_prefill_attention_s
        A query-key pair of the prompts: n tokens after c cached ones make n*c + n*(n+1)/2.
    per_prefill_seq_s
        A request that prefills in the step.
    per_prefill_context_s
        A token in the KV cache of a prefilling request after the step.
    per_decode_seq_s
        A request that decodes one token in the step.
    per_decode_context_s
        A token in the KV cache of a decoding request after the step.
    """

    base_s: Seconds = Field(0.0, ge=0)
    per_prefill_token_s: Seconds = Field(0.0, ge=0)
    per_prefill_attention_s: Seconds = Field(0.0, ge=0)
    per_prefill_seq_s: Seconds = Field(0.0, ge=0)
    per_prefill_context_s: Seconds = Field(0.0, ge=0)
    per_decode_seq_s: Seconds = Field(0.0, ge=0)
    per_decode_context_s: Seconds = Field(0.0, ge=0)


class StepRegime(Frozen):
    """Where a set of pieces holds: a phase, from a number of scheduled tokens on.

    The time of a step is the largest of the pieces of its regime: floors (reading the weights, the host's
    own time) and work (matrix products, attention, reading the context) compete, the slower one wins.
    """

    phase: Literal["any", "prefill", "decode", "mixed"] = "any"
    min_tokens: int = Field(0, ge=0)
    pieces: tuple[StepPiece, ...] = Field(min_length=1)


class StepTime(Frozen):
    """How long a step takes: of the regimes whose phase fits, the one with the largest `min_tokens` reached.

    An exact phase (`prefill`, `decode`, `mixed`) wins over `any`. Every kind of step must be covered.

    Raises
    ------
    ValueError
        If a phase is left without a regime that starts at 0 tokens, or a piece-wise maximum can be zero.

    Examples
    --------
    >>> StepTime.affine(base_s=0.004, per_prefill_token_s=2e-5).regimes[0].phase
    'any'
    """

    regimes: tuple[StepRegime, ...] = Field(min_length=1)

    @classmethod
    def affine(cls, **coefficients: float) -> Self:
        """Build the simplest model: one affine function for every step."""
        return cls(regimes=(StepRegime(pieces=(StepPiece(**coefficients),)),))

    def scaled(self, factor: float) -> Self:
        """Give the model of an engine whose every step takes `factor` times as long.

        >>> StepTime.affine(base_s=0.004).scaled(1.5).regimes[0].pieces[0].base_s
        0.006
        """
        return type(self)(
            regimes=tuple(
                StepRegime(
                    phase=regime.phase,
                    min_tokens=regime.min_tokens,
                    pieces=tuple(
                        StepPiece(**{name: rate * factor for name, rate in piece}) for piece in regime.pieces
                    ),
                )
                for regime in self.regimes
            )
        )

    @model_validator(mode="after")
    def _covers_every_step(self) -> Self:
        starts: dict[str, set[int]] = {}
        for regime in self.regimes:
            known = starts.setdefault(regime.phase, set())
            if regime.min_tokens in known:
                raise ValueError(
                    f"two regimes of phase {regime.phase!r} start at {regime.min_tokens} tokens; keep one"
                )
            known.add(regime.min_tokens)
            if not any(ticks(piece.base_s) for piece in regime.pieces):
                raise ValueError(
                    f"regime {regime.phase!r} from {regime.min_tokens} tokens has no piece with base_s > 0, rounded to "
                    "femtoseconds: a step would take no time at all; give the fixed time of a step in seconds"
                )
        for phase in ("prefill", "decode", "mixed"):
            if 0 not in starts.get(phase, ()) and 0 not in starts.get("any", ()):
                raise ValueError(
                    f"no regime covers {phase!r} from 0 tokens on; add one, or one of phase 'any'"
                )
        return self


class Engine(Frozen):
    """An LLM on one GPU or one tensor-parallel group: what limits a batch and how long a step takes.

    Attributes
    ----------
    name
        For people: `llama3.1-8b@h200`.
    kv_blocks
        Usable KV blocks (vLLM's `num_gpu_blocks` less its null block).
    block_tokens
        Tokens per KV block.
    max_num_batched_tokens
        Token budget of a step.
    max_num_seqs
        Seats: most requests that may run at once.
    max_model_len
        Longest prompt plus output, in tokens; None where nothing but the KV cache limits it.
    prefix_caching
        Whether full blocks of equal prefixes are shared and kept.
    async_scheduling
        Whether a step is composed while the one before it runs: it then knows of what arrived before that one
        started, and seats and blocks of requests that finish with that one come free a step later.
    preemption
        Whether a running request may be thrown out, to be computed anew later (`recompute`), or not (`none`: the model
        of most theory papers; schedulers must then see to it that the KV cache lasts).
    step_time
        The step-time model.
    origin, source
        Where `step_time` and `kv_blocks` come from: measured or estimated, and by what.

    Raises
    ------
    ValueError
        On a number out of range, or seats that outnumber the token budget: a step could then not give
        every running request its token.

    Examples
    --------
    >>> engine = Engine(name="toy", kv_blocks=100, step_time=StepTime.affine(base_s=0.01))
    >>> engine.kv_tokens
    1600
    """

    name: str = Field(min_length=1)
    kv_blocks: int = Field(ge=1)
    block_tokens: int = Field(16, ge=1, le=MOST_BLOCK_TOKENS)
    max_num_batched_tokens: int = Field(8192, ge=1)
    max_num_seqs: int = Field(256, ge=1)
    max_model_len: int | None = Field(None, ge=2)
    prefix_caching: bool = False
    async_scheduling: bool = False
    preemption: Literal["recompute", "none"] = "recompute"
    step_time: StepTime
    origin: Literal["measured", "fitted", "estimated", "given"] = "given"
    source: str = ""

    @model_validator(mode="after")
    def _every_seat_gets_its_token(self) -> Self:
        if self.max_num_seqs > self.max_num_batched_tokens:
            raise ValueError(
                f"max_num_seqs {self.max_num_seqs} is above max_num_batched_tokens "
                f"{self.max_num_batched_tokens}; a step must have room for one token of every running request"
            )
        return self

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.kv_blocks * self.block_tokens

    def replace(self, **changes: object) -> Self:
        """Give a copy with some fields changed, validated again."""
        return type(self).model_validate({**dict(self), **changes})

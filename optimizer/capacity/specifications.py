"""What a data sheet and a config.json say: the shape of an LLM and the rates of a GPU."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from optimizer.errors import InputError
from optimizer.problem.engine import Frozen

Dtype = Literal["bf16", "fp16", "fp8"]

BYTES: dict[Dtype, int] = {"bf16": 2, "fp16": 2, "fp8": 1}
"""Bytes of one number."""


class LLM(Frozen):
    """The shape of a decoder-only transformer; everything about memory and work follows from it.

    Attributes
    ----------
    name
        As in the catalogue: `llama3.1-8b`.
    layers, hidden, heads, kv_heads, head_dim, intermediate, vocab
        Counts. `heads` must be a multiple of `kv_heads`. Of a mixture of experts, `intermediate` is one expert's.
    gated_mlp
        Three matrices per MLP (SwiGLU) instead of two.
    experts, experts_per_token
        1 and 1 for a dense model.
    tied_embeddings
        The LM head shares the embedding matrix.
    qkv_bias, linear_bias, qk_norm, learned_positions
        Small parameters: biases of Q, K and V alone; of every linear layer and norm (OPT); a norm on each
        head of Q and K (Qwen3); rows of a learned position table.
    dtype
        What the weights are stored in unless the user says otherwise.
    max_model_len
        Longest prompt plus output that the model was made for, in tokens.
    published_parameters
        As published with the weights; None where nobody says it.
    source
        Where the figures come from.

    Raises
    ------
    ValueError
        On a number out of range, or heads that do not divide.

    Examples
    --------
    >>> toy = LLM(name="toy", layers=2, hidden=8, heads=2, kv_heads=1, head_dim=4, intermediate=16, vocab=10)
    >>> toy.kv_bytes_per_token(), toy.parameters
    (32, 1352)
    """

    name: str = Field(min_length=1)
    layers: int = Field(ge=1)
    hidden: int = Field(ge=1)
    heads: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    vocab: int = Field(ge=1)
    gated_mlp: bool = True
    experts: int = Field(1, ge=1)
    experts_per_token: int = Field(1, ge=1)
    tied_embeddings: bool = False
    qkv_bias: bool = False
    linear_bias: bool = False
    qk_norm: bool = False
    learned_positions: int = Field(0, ge=0)
    dtype: Dtype = "bf16"
    max_model_len: int | None = Field(None, ge=2)
    published_parameters: int | None = Field(None, ge=1)
    source: str = ""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}")
        if self.experts_per_token > self.experts:
            raise ValueError(f"experts_per_token {self.experts_per_token} is above experts {self.experts}")
        return self

    def kv_bytes_per_token(self, dtype: Dtype = "bf16") -> int:
        """KV cache of one token in bytes, over all layers: 2 * layers * kv_heads * head_dim * bytes.

        >>> from optimizer.capacity import llm
        >>> llm("llama3.1-8b").kv_bytes_per_token()
        131072
        """
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES[dtype]

    @property
    def attention_parameters(self) -> int:
        """Parameters of one layer's attention and norms."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        count = 2 * self.hidden * (queries + keys) + 2 * self.hidden
        if self.qkv_bias or self.linear_bias:
            count += queries + 2 * keys
        if self.linear_bias:
            count += 3 * self.hidden
        return count + (2 * self.head_dim if self.qk_norm else 0)

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert of one layer (of the MLP, where there is one)."""
        matrices = (3 if self.gated_mlp else 2) * self.hidden * self.intermediate
        return matrices + (self.intermediate + self.hidden if self.linear_bias else 0)

    @property
    def router_parameters(self) -> int:
        """Parameters of one layer's choice of experts."""
        return self.hidden * self.experts if self.experts > 1 else 0

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the token table; the LM head has as many, shared or not."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, counted from the shape."""
        return self._count(self.experts)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: of the experts, only those it is sent to."""
        return self._count(self.experts_per_token)

    def _count(self, experts: int) -> int:
        layer = self.attention_parameters + experts * self.expert_parameters + self.router_parameters
        tables = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        positions = self.learned_positions * self.hidden
        return self.layers * layer + tables + positions + self.hidden * (2 if self.linear_bias else 1)

    def weight_bytes(self, dtype: Dtype | None = None) -> int:
        """Weights in bytes; with fp8, engines keep the embeddings and the LM head in bf16.

        >>> from optimizer.capacity import llm
        >>> llm("llama3.1-8b").weight_bytes()
        16060522496
        """
        kept = dtype or self.dtype
        tables = self.embedding_parameters * (1 if self.tied_embeddings else 2)
        return (self.parameters - tables) * BYTES[kept] + tables * 2


class Efficiency(Frozen):
    """What a serving engine reaches of the data sheet.

    The defaults are for a GPU that nobody measured: what vLLM reaches on the H200, and the all-reduces of NVLink.

    Attributes
    ----------
    matrix, fp8_matrix, attention
        Shares of the peak rate, in (0, 1].
    fp8_few_matrix
        The same for fp8 products in steps of up to 512 tokens, whose tiles are mostly padding.
    weight_read, kv_read, interconnect
        Shares of the bandwidth, in (0, 1].
    layer_s
        Launches and small kernels of one layer.
    allreduce_s
        Latency of one all-reduce; each layer has two.
    step_s
        The fixed part of a step that nothing hides.
    seq_s
        Sampling and bookkeeping of one request in a step.
    host_s, host_seq_s
        The host's own time of a step and of each request in it; an asynchronous engine hides it behind the GPU.
    """

    matrix: float = Field(0.63, gt=0, le=1)
    fp8_matrix: float = Field(0.49, gt=0, le=1)
    fp8_few_matrix: float = Field(0.27, gt=0, le=1)
    attention: float = Field(0.57, gt=0, le=1)
    weight_read: float = Field(0.79, gt=0, le=1)
    kv_read: float = Field(0.76, gt=0, le=1)
    interconnect: float = Field(0.33, gt=0, le=1)
    layer_s: float = Field(2e-5, ge=0)
    allreduce_s: float = Field(2.2e-5, ge=0)
    step_s: float = Field(2e-4, ge=0)
    seq_s: float = Field(5e-6, ge=0)
    host_s: float = Field(2e-3, ge=0)
    host_seq_s: float = Field(2e-5, ge=0)


class EstimateError(Frozen):
    """How wrong estimated step times were, where published figures of engines on this GPU tell it.

    Attributes
    ----------
    what
        The figures: of which engines, and what was measured.
    points
        Figures compared.
    fitted
        Those of them that took part in the fit of `Efficiency`.
    median
        Of the absolute relative error.
    low, high
        The extremes of estimate / measured - 1: below 0 the estimate was too fast.
    """

    what: str = Field(min_length=1)
    points: int = Field(ge=1)
    fitted: int = Field(0, ge=0)
    median: float = Field(ge=0)
    low: float = Field(gt=-1)
    high: float = Field(gt=-1)

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class GPU(Frozen):
    """The rates of one GPU, as the vendor states them (dense, no sparsity).

    Attributes
    ----------
    name
        As in the catalogue: `h200`.
    memory_bytes
        What the driver reports in total.
    bandwidth_bytes_s
        Of the GPU's own memory.
    bf16_flops, fp8_flops
        Per second, dense, 32-bit accumulation; `fp8_flops` is None where the hardware has no FP8.
    interconnect_bytes_s
        To the other GPUs of a tensor-parallel group, in one direction.
    source
        Where the figures come from.
    efficiency
        What engines reach of these rates; None where nothing tells it: the defaults of `Efficiency` are taken.
    efficiency_source
        What the factors were fitted to.
    estimate_error
        Of estimates with these factors, against engines of the kind that they stand for; None: never checked.
    other_errors
        The same against other kinds: older software, other engines.
    """

    name: str = Field(min_length=1)
    memory_bytes: int = Field(ge=1)
    bandwidth_bytes_s: float = Field(gt=0)
    bf16_flops: float = Field(gt=0)
    fp8_flops: float | None = Field(None, gt=0)
    interconnect_bytes_s: float = Field(gt=0)
    source: str = ""
    efficiency: Efficiency | None = None
    efficiency_source: str = ""
    estimate_error: EstimateError | None = None
    other_errors: tuple[EstimateError, ...] = ()

    def flops(self, dtype: Dtype) -> float:
        """Peak rate for matrix products in `dtype`; without FP8 hardware, fp8 weights run at the bf16 rate.

        >>> from optimizer.capacity import gpu
        >>> gpu("a100-80").flops("fp8") == gpu("a100-80").flops("bf16")
        True
        """
        return self.fp8_flops if dtype == "fp8" and self.fp8_flops else self.bf16_flops


def tensor_parallel_sizes(llm: LLM) -> list[int]:
    """Give the numbers of GPUs, up to 64, that the heads of `llm` can be dealt to; KV heads may be copied.

    >>> from optimizer.capacity import llm
    >>> tensor_parallel_sizes(llm("qwen2.5-7b"))
    [1, 2, 4, 28]
    """
    return [
        n
        for n in range(1, min(llm.heads, 64) + 1)
        if llm.heads % n == 0 and (llm.kv_heads % n == 0 or n % llm.kv_heads == 0)
    ]


def check_tensor_parallel(llm: LLM, tp: int) -> None:
    """See that the heads of `llm` can be dealt to `tp` GPUs.

    Raises
    ------
    InputError
        Naming the sizes that work.
    """
    sizes = tensor_parallel_sizes(llm)
    if tp not in sizes:
        raise InputError(
            f"{tp} GPUs cannot share the {llm.heads} heads ({llm.kv_heads} of KV) of {llm.name}; "
            f"sizes that can: {', '.join(map(str, sizes))}",
            field="tp",
        )

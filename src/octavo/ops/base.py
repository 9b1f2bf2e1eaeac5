"""The kernels' one interface. A backend implements ``Ops``; the layers call nothing else.

Backends are peers: ``reference`` (plain torch, any device, the oracle), ``cpu`` (C++), later ``cuda`` (Triton).
Shapes: T tokens in the step, S sequences, H hidden size, Hq query heads, Hk key/value heads, D head size, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


@dataclass(slots=True)
class AttentionBatch:
    """The geometry of one step, shared by all layers.

    Tokens of a sequence are adjacent; sequence ``s`` owns rows ``query_starts[s] : query_starts[s + 1]``, whose last row
    is at position ``context_lens[s] - 1``.

    Attributes:
        positions: int64 [T], each token's position in its sequence.
        slots: int64 [T], where each token's key and value go: block id * block size + offset in the block.
        query_starts: int32 [S + 1].
        context_lens: int32 [S], tokens of the sequence after this step (cached ones and this step's).
        block_tables: int32 [S, most blocks], padded with 0.
        query_lens, context_lens_host: the same numbers as lists, for host decisions.
        block_size: token slots in a block.
        plans: what a backend computes once a step and all layers share, under the backend's own keys; starts empty.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    query_starts: torch.Tensor
    context_lens: torch.Tensor
    block_tables: torch.Tensor
    query_lens: list[int]
    context_lens_host: list[int]
    block_size: int
    plans: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """What one layer's attention is: fixed at load.

    Attributes:
        scale: factor on query-key products.
        window: a query at position p sees positions p - window + 1 .. p; None sees all up to p.
        softcap: scores become softcap * tanh(score / softcap); None leaves them.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class KVShape:
    """How the page pool is cut: every block holds, layer by layer, its slots' keys and values.

    Attributes:
        dtype: of cached values: float32, bfloat16, float16 or int8.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: str


class KVLayer:
    """One layer's part of the page pool; only the backend that made it reads it."""

    __slots__ = ()


QUANT_BLOCK = 32
"""Values of a row that share a scale, where a weight's scales are not one a row."""


@dataclass(frozen=True, slots=True)
class BlockWeight:
    """A weight [N, K] as small integers: value = scale * (q - zero) + minimum.

    K is a multiple of ``QUANT_BLOCK`` (B = 32 below). Arrays may be strided views of a mapped file; nothing here is writable for sure.

    Attributes:
        bits: 4 or 8.
        values: 4 bits: uint8 [N, K / B, B / 2], byte ``i`` of a block holding value ``i`` (low nibble) and value ``i + B / 2`` (high);
            8 bits: uint8 or int8 [N, K / B, B].
        zero: what q counts from: 0 for int8 and wherever there is a minimum.
        scales: float16 [N, K / B], or float32 [N, 1] for one scale a row (8 bits without a minimum only).
        minima: float16 [N, K / B], or None.
    """

    bits: int
    values: npt.NDArray[Any]
    zero: int
    scales: npt.NDArray[Any]
    minima: npt.NDArray[Any] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.values.shape[0], self.values.shape[1] * QUANT_BLOCK


@dataclass(frozen=True, slots=True)
class Float8Weight:
    """A dense weight [N, K] that is to be held as float8_e4m3fn with a float32 scale a row; the backend makes it so on its device.

    Attributes:
        dense: all finite.
    """

    dense: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.dense.shape[0], self.dense.shape[1]


class PackedLinear:
    """A weight in a backend's own layout; only that backend's ``linear`` reads it."""

    __slots__ = ("data", "in_features", "out_features")

    def __init__(self, data: object, in_features: int, out_features: int) -> None:
        self.data = data
        self.in_features = in_features
        self.out_features = out_features


@dataclass(frozen=True, slots=True)
class SampleRows:
    """How each of R rows of logits is sampled, as host arrays; see ``octavo.sampling.filters`` for what the filters keep.

    Attributes:
        temperatures: float32 [R]; 0 takes the most likely token.
        top_ks: int32 [R], 0 where off. top_ps: float32 [R], 1 where off. min_ps: float32 [R], 0 where off.
        seeds: int64 [R], the sequences' keys.
        positions: int64 [R], of the tokens to be drawn: with the seed they key the draw.
    """

    temperatures: npt.NDArray[np.float32]
    top_ks: npt.NDArray[np.int32]
    top_ps: npt.NDArray[np.float32]
    min_ps: npt.NDArray[np.float32]
    seeds: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepLimits:
    """What no step exceeds.

    Attributes:
        most_sequences: in a step.
        most_blocks: in a sequence's block table.
    """

    most_sequences: int
    most_blocks: int


Forward = Callable[[torch.Tensor, AttentionBatch, list[KVLayer]], torch.Tensor]
"""Token ids int64 [T], or an earlier stage's float32 rows [T, H], the step and the pool's layers to rows [T, H]."""

WeightPart = torch.Tensor | BlockWeight | Float8Weight
"""A weight [n, K] as the checkpoint has it: dense, in its own precision, or to become float8 numbers."""


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMSNorm on each head of queries and of keys.

    Attributes:
        queries, keys: the weights, float32 [D].
        eps, plus_one: see ``Ops.rms_norm``.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    eps: float
    plus_one: bool


class Group(ABC):
    """The ranks that share each layer: each has some heads, some columns of the feed-forward network, some of the vocabulary.

    All of them call the same methods in the same order with rows of the same number.

    Attributes:
        rank: this one's place, in [0, size).
        size: how many there are.
    """

    rank: int
    size: int

    @abstractmethod
    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' ``x``, which may be overwritten with it; a row's bits do not depend on the rows beside it."""

    @abstractmethod
    def gather(self, part: torch.Tensor, widths: Sequence[int]) -> torch.Tensor | None:
        """All ranks' float32 [R, widths[rank]] side by side: float32 [R, sum of widths] on rank 0, and on all where the device samples;
        None on the others."""


class Ops(ABC):
    """The fused operations a decoder needs. Outputs are new tensors unless a docstring says in place.

    Attributes:
        dtype: the compute type: of dense weights and of what they are multiplied with.
        activation_dtype: of rows between operations; the compute type, or wider.
        runs_blocks: whether weights in blocks are multiplied as they are, not turned dense first.
        samples: whether ``sample`` is there: drawing on the device, which the host need not wait for.
        group: the ranks that share each layer; None where this one has them whole.
    """

    name: str
    runs_blocks = False
    samples = False

    def __init__(self, device: torch.device, dtype: torch.dtype, group: Group | None = None) -> None:
        self.device = device
        self.dtype = dtype
        self.activation_dtype = dtype
        self.group = group

    # ---- weights -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def pack_linear(self, parts: Sequence[WeightPart], bias: torch.Tensor | None = None, gated: bool = False) -> PackedLinear:
        """Lay out a weight for ``linear``. The arguments may be freed afterwards.

        Args:
            parts: weights [n, K] each, stacked in this order to [N, K].
            bias: [N].
            gated: the upper half of the rows are gates, the lower half what they multiply: for ``gated_linear``.
        """

    @abstractmethod
    def linear(self, x: torch.Tensor, weight: PackedLinear) -> torch.Tensor:
        """[T, K] times the packed weight [N, K] transposed, plus its bias: [T, N] in the activation type."""

    @abstractmethod
    def gated_linear(self, x: torch.Tensor, weight: PackedLinear, kind: str) -> torch.Tensor:
        """act(gate) * up, where the product of [T, K] with a gated weight [2 I, K] is gate and up beside each other.

        Args:
            kind: of the activation: silu or gelu_tanh.

        Returns:
            [T, I] in the activation type.
        """

    @abstractmethod
    def pack_embedding(self, table: WeightPart, head: PackedLinear | None) -> object:
        """Lay out a token table [V, H] for ``embedding``.

        Args:
            head: the same weight packed for the scores, where a model uses one for both: a backend may look rows up in it.
        """

    @abstractmethod
    def embedding(self, token_ids: torch.Tensor, table: object, scale: float = 1.0, part: tuple[int, int] | None = None) -> torch.Tensor:
        """Rows of a table at int64 ``token_ids`` [T], times ``scale`` (rounded to the compute type first).

        Args:
            part: which rows (from, to) of the vocabulary the table holds, where it is not all: zeros stand for the others.

        Returns:
            float32 [T, H], a new tensor: the start of the residual stream.
        """

    @abstractmethod
    def logits(self, x: torch.Tensor, weight: PackedLinear, softcap: float | None = None) -> torch.Tensor:
        """Vocabulary scores of rows [R, H], capped where ``softcap`` is set: float32 [R, V], not rounded to the compute type."""

    def sample(self, logits: torch.Tensor, rows: SampleRows) -> torch.Tensor:
        """Sample a token a row on the device; the host does not wait.

        Args:
            logits: float32 [R, V], contiguous, left as they are.

        Returns:
            int64 [R] on the device; -1 for a row that holds NaN or +inf, or nothing but -inf.
        """
        raise NotImplementedError(f"the {self.name} kernels leave sampling to the host")

    # ---- between ranks and stages ------------------------------------------------------------------------------------

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks of ``group`` of [T, N], which may be overwritten; ``x`` itself where there is no group."""
        return x if self.group is None else self.group.all_reduce(x)

    def stage_input(self, rows: torch.Tensor) -> torch.Tensor:
        """The residual stream as an earlier pipeline stage left it, float32 [T, H]: where a forward pass begins with it, it begins here.

        Returns:
            a tensor that may be overwritten.
        """
        return rows

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """``residual + x``: the residual stream, float32 [T, H], as the next stage is to have it. ``residual`` may be overwritten."""
        return residual.add_(x.float())

    # ---- element-wise ------------------------------------------------------------------------------------------------

    @abstractmethod
    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool = False) -> torch.Tensor:
        """RMSNorm over the last dimension of float32 or activation-type rows, computed in float32.

        Args:
            plus_one: multiply by 1 + weight.

        Returns:
            x's shape in the activation type.
        """

    @abstractmethod
    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, plus_one: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``residual + x`` and its RMSNorm, as (normed, sum).

        Args:
            x: [T, H] in the activation type.
            residual: float32 [T, H]; may be overwritten with the sum.
        """

    # ---- attention ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def rotary_and_cache(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos_sin: torch.Tensor,
        batch: AttentionBatch,
        kv: KVLayer,
        norms: HeadNorms | None = None,
    ) -> torch.Tensor:
        """Rotate queries and keys by their positions, write keys and values to their slots.

        Args:
            q: [T, Hq, D]; k, v: [T, Hk, D]; may be overwritten.
            cos_sin: float32 [positions, rotary dim]: cosines then sines of rotary dim / 2 angles; halves of a head are
                rotated against each other (Hugging Face's convention), dimensions past the rotary dim pass unchanged.
            norms: of each head of queries and of keys, before they are rotated.

        Returns:
            The rotated queries [T, Hq, D].
        """

    def _norm_heads(self, q: torch.Tensor, k: torch.Tensor, norms: HeadNorms | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and keys as they are rotated, for kernels that do not do both at once."""
        if norms is None:
            return q, k
        rest = norms.eps, norms.plus_one
        return self.rms_norm(q, norms.queries, *rest), self.rms_norm(k, norms.keys, *rest)

    @abstractmethod
    def paged_attention(self, q: torch.Tensor, batch: AttentionBatch, kv: KVLayer, spec: AttentionSpec) -> torch.Tensor:
        """Causal attention of each row over its sequence's cached positions up to its own: [T, Hq, D]."""

    # ---- pool --------------------------------------------------------------------------------------------------------

    @abstractmethod
    def kv_layers(self, pool: torch.Tensor, shape: KVShape) -> list[KVLayer]:
        """The layers' parts of a byte pool uint8 [blocks, bytes a block], in the backend's own layout.

        Raises:
            ValueError: the pool's blocks have another size than the layout asks for, or the shape is one the backend does not have.
        """

    @abstractmethod
    def copy_blocks(self, pool: torch.Tensor, copies: list[tuple[int, int]]) -> None:
        """Copy whole blocks of the byte pool [blocks, bytes a block] in place, (source, destination) each, as if at once."""

    # ---- the whole pass ----------------------------------------------------------------------------------------------

    def prepare_forward(
        self, forward: Forward, kv: list[KVLayer], limits: StepLimits, stage_width: int | None = None
    ) -> Callable[[torch.Tensor, AttentionBatch], torch.Tensor]:
        """The fastest way this backend has to run a model's forward pass again and again; the same bits as calling it.

        Args:
            forward: a model's forward pass, of this backend's operations alone.
            kv: the pool's layers, the same ones in every call.
            limits: of the steps to come.
            stage_width: H, where the pass begins with an earlier stage's rows [T, H] instead of token ids [T].
        """
        return lambda start, batch: forward(start, batch, kv)


def part_embedding(look_up: Callable[[torch.Tensor], torch.Tensor], token_ids: torch.Tensor, part: tuple[int, int]) -> torch.Tensor:
    """``Ops.embedding`` of a part of the vocabulary, by a look-up of that part's own ids.

    Args:
        look_up: from int64 [T] in [0, rows of the part) to float32 [T, H], a new tensor.
        part: see ``Ops.embedding``.
    """
    first, last = part
    outside = (token_ids < first) | (token_ids >= last)
    return look_up((token_ids - first).clamp(0, last - first - 1)).masked_fill_(outside.unsqueeze(1), 0.0)

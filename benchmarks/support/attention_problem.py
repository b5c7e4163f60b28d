"""One attention to be timed: its inputs, what it costs by convention, and what is right.

Dims: B sequences, T tokens, H heads, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.attention.bias import TimeBias
from recsys.kernels.attention.reference import jagged_attention_reference
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta

BACKWARD_FLOP = 2.5  # times those of the forward pass, whatever a kernel really does
FILL = 0.4
TIME_BUCKETS = 64
# Heads and sequences that the float64 reference takes on: a score matrix of 16,384 x 16,384 has 2 GB.
CHECKED_HEADS = 2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is asked for.

    Attributes:
        tokens: about how many in all.
        max_len: of a sequence.
        is_ragged: lengths are lognormal and fill about 40 % of the padded rectangle; all are `max_len` otherwise.
        bias: with a learned bias by time difference, a table row a head.
        kind: `softmax` or `silu`.
    """

    name: str
    max_len: int
    width: int
    tokens: int = 65_536
    num_heads: int = 8
    is_ragged: bool = False
    causal: bool = True
    bias: bool = False
    kind: str = "softmax"
    window: tuple[int, int] = (-1, -1)
    num_global: int = 0
    dtype: torch.dtype = torch.bfloat16


class Problem:
    """A shape with lengths and numbers drawn.

    Args:
        shape: what is asked for.
        device: where it runs.
    """

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape, self.device = shape, device
        self.lengths = draw_lengths(shape)
        self.meta = JaggedMeta.from_lengths(self.lengths, device)
        generator = torch.Generator(device).manual_seed(0)
        size = (self.meta.total, shape.num_heads, shape.width)
        self.q, self.k, self.v, self.share = (
            torch.randn(size, generator=generator, device=device).to(shape.dtype) for _ in range(4)
        )
        self.inputs = [self.q, self.k, self.v]
        if shape.bias:
            self.table = torch.randn(shape.num_heads, TIME_BUCKETS, generator=generator, device=device)
            self.inputs.append(self.table)
            self.seconds = _seconds(self.lengths).to(device)
        for tensor in self.inputs:
            tensor.requires_grad_()

    @property
    def scale(self) -> float:
        """Of the scores."""
        return float(self.shape.width**-0.5)

    @property
    def fill(self) -> float:
        """Tokens by the cells of the padded rectangle."""
        return self.meta.total / (self.meta.max_len * len(self.lengths))

    @cached_property
    def forward_flop(self) -> float:
        """4 H D times the sum of squared lengths, half of it if causal."""
        squares = float((self.lengths.astype(np.float64) ** 2).sum())
        return 4.0 * self.shape.num_heads * self.shape.width * squares / (2 if self.shape.causal else 1)

    @property
    def tensor_bytes(self) -> int:
        """Of q, or any tensor of its shape: the forward pass moves 4 of them at least, the backward pass 8."""
        return self.q.numel() * self.q.element_size()

    def time_bias(self, table: Tensor | None = None) -> TimeBias | None:
        """The learned bias, if there is one."""
        if not self.shape.bias:
            return None
        return TimeBias(table=self.table if table is None else table, ts_q=self.seconds, ts_k=self.seconds)

    def checked(self, dtype: torch.dtype) -> list[Tensor]:
        """Out and the gradients of q, k, v by the definition, in `dtype`, for the first sequence and heads.

        With a bias, also the gradient (H, TIME_BUCKETS) of its table, in float32 at least.
        """
        count, heads = int(self.lengths[0]), slice(0, CHECKED_HEADS)
        q, k, v, share = (
            x.detach()[:count, heads].to(dtype).requires_grad_() for x in (self.q, self.k, self.v, self.share)
        )
        leaves, bias = [q, k, v], None
        if self.shape.bias:
            wide = torch.promote_types(dtype, self.table.dtype)
            leaves.append(self.table.detach()[heads].to(wide).requires_grad_())
            bias = self.time_bias(leaves[-1])
        meta = JaggedMeta.from_lengths(self.lengths[:1], self.device)
        shape = self.shape
        visibility = Visibility(causal=shape.causal, window=shape.window, num_global=shape.num_global)
        norm = float(shape.max_len) if shape.kind == "silu" else None
        out, _ = jagged_attention_reference(
            q, k, v, meta, meta, scale=self.scale, visibility=visibility, silu_norm=norm, time_bias=bias
        )
        return [out.detach(), *torch.autograd.grad(out, leaves, share)]

    def found(self, run: Callable[[], Tensor]) -> list[Tensor]:
        """The same of a rival; of the table, the gradient that comes from the first sequence alone."""
        out = run()
        grads = torch.autograd.grad(out, self.inputs[:3], self.share)
        count = int(self.lengths[0])
        found = [x.detach()[:count, :CHECKED_HEADS] for x in (out, *grads)]
        if self.shape.bias:
            share = self.share.detach().clone()
            share[count:] = 0.0
            found += [grad[:CHECKED_HEADS] for grad in torch.autograd.grad(run(), [self.table], share)]
        return found


def draw_lengths(shape: Shape) -> np.ndarray:
    """(B,) int64; the first is the longest."""
    if not shape.is_ragged:
        return np.full(max(1, shape.tokens // shape.max_len), shape.max_len, dtype=np.int64)
    size = max(2, round(shape.tokens / (FILL * shape.max_len)))
    drawn = np.random.default_rng(0).lognormal(0.0, 0.8, size)
    drawn *= FILL * size / drawn.sum()
    for _ in range(20):  # cutting at the longest length lowers the fill
        drawn *= FILL * size / np.minimum(drawn, 1.0).sum()
    lengths: np.ndarray = np.clip((np.minimum(drawn, 1.0) * shape.max_len).astype(np.int64), 1, shape.max_len)
    lengths[int(lengths.argmax())], lengths[0] = lengths[0], shape.max_len
    return lengths


def _seconds(lengths: np.ndarray) -> Tensor:
    """(T,) int32: sessions of events a minute apart, days between them."""
    generator = np.random.default_rng(1)
    gaps = np.where(generator.random(int(lengths.sum())) < 0.9, 60, 86_400)
    parts = [np.cumsum(part) for part in np.split(gaps, np.cumsum(lengths)[:-1])]
    return torch.from_numpy(np.concatenate(parts).astype(np.int32))

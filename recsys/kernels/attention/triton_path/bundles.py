"""What the attention kernels are called with, in bundles: Triton takes named tuples apart at a launch.

No field is None: an argument that a kernel does not read is a tensor that is at hand.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from recsys.kernels.attention.arguments import Arguments
from recsys.kernels.attention.bias import LOG2_STEPS, PosBias, TimeBias
from recsys.kernels.attention.dropout import column_state, row_state, threshold
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.bundles import block_of
from recsys.kernels.jagged import JaggedMeta

FAR = 1 << 29  # places: beyond every sequence, and still an int32 when places are added to it


class Sequences(NamedTuple):
    """Where the sequences of a batch lie: (B+1,) int64 twice, and (B,) int32 how many last tokens are targets."""

    offsets_q: Tensor
    offsets_k: Tensor
    num_targets: Tensor

    @classmethod
    def of(cls, arguments: Arguments) -> "Sequences":
        """Those of a call."""
        offsets, targets = arguments.meta_q.offsets, arguments.num_targets
        on_device = offsets if targets is None else _on_device(targets, arguments.meta_k)
        return cls(offsets, arguments.meta_k.offsets, on_device)


class Masks(NamedTuple):
    """Who sees whom, as in `visibility.py`."""

    left: int
    right: int
    num_global: int
    target_group: int

    @classmethod
    def of(cls, visibility: Visibility) -> "Masks":
        """Of what may be larger than any int32."""
        limits = *visibility.window, visibility.num_global, visibility.target_group
        return cls(*(min(limit, FAR) for limit in limits))


class Terms(NamedTuple):
    """What is added to the scores: tables of biases, strides of their heads (0: one row for all), times, thresholds."""

    time_table: Tensor
    time_h: int
    num_buckets: int
    ts_q: Tensor
    ts_k: Tensor
    thresholds: Tensor
    pos_table: Tensor
    pos_h: int
    reach: int

    @classmethod
    def of(cls, q: Tensor, arguments: Arguments) -> "Terms":
        """Of the biases of a call, or of what stands for them."""
        time, pos, unread = arguments.time_bias, arguments.pos_bias, arguments.meta_q.offsets
        time_table, num_buckets, ts_q, ts_k, thresholds = unread, 1, unread, unread, unread
        if time is not None:
            time_table, num_buckets = time.table.detach().to(wide_dtype(q.dtype)).contiguous(), time.table.shape[1]
            ts_q, ts_k = time.ts_q.contiguous(), time.ts_k.contiguous()
            thresholds = unread if _steps(time) else time.thresholds()
        pos_table, reach = unread, 0
        if pos is not None:
            reach = _reach(pos, max(arguments.meta_q.max_len, arguments.meta_k.max_len))
            pos_table = _expanded(pos, arguments.visibility.causal, q, reach)
        time_h, pos_h = (0 if table.shape[0] == 1 else table.stride(0) for table in (time_table, pos_table))
        return cls(time_table, time_h, num_buckets, ts_q, ts_k, thresholds, pos_table, pos_h, reach)


class Dropout(NamedTuple):
    """As in `dropout.py`. The states, which differ each step, go beside it: what is in a bundle is specialised."""

    threshold: int
    kept_share: float

    @classmethod
    def of(cls, dropout_p: float) -> "Dropout":
        """Of the share of weights that is dropped."""
        return cls(threshold(dropout_p), 1.0 - dropout_p)


class Flags(NamedTuple):
    """What a kernel is compiled for; the same for all batches of a model."""

    D: int
    DV: int
    BLOCK_D: int
    BLOCK_DV: int
    CAUSAL: bool
    HAS_LEFT: bool
    HAS_RIGHT: bool
    HAS_GLOBAL: bool
    HAS_TARGETS: bool
    HAS_TIME: bool
    HAS_POS: bool
    HAS_DROPOUT: bool
    IS_SILU: bool
    STEPS: int  # time buckets a doubling; 0: thresholds
    BISECTIONS: int  # that find a bucket among thresholds
    ACC: Any  # dtype of sums
    PRECISION: str  # of products of float32

    @classmethod
    def of(cls, q: Tensor, v: Tensor, arguments: Arguments) -> "Flags":
        """Of a call."""
        visibility, time = arguments.visibility, arguments.time_bias
        return cls(
            D=q.shape[2],
            DV=v.shape[2],
            BLOCK_D=block_of(q.shape[2]),
            BLOCK_DV=block_of(v.shape[2]),
            CAUSAL=visibility.causal,
            HAS_LEFT=visibility.window[0] >= 0,
            HAS_RIGHT=visibility.window[1] >= 0 and not visibility.causal,
            HAS_GLOBAL=visibility.num_global > 0,
            HAS_TARGETS=arguments.num_targets is not None,
            HAS_TIME=time is not None,
            HAS_POS=arguments.pos_bias is not None,
            HAS_DROPOUT=arguments.dropout_p > 0,
            IS_SILU=arguments.silu_norm is not None,
            STEPS=0 if time is None else _steps(time),
            BISECTIONS=0 if time is None else (time.table.shape[1] - 1).bit_length(),
            ACC=tl.float64 if q.dtype == torch.float64 else tl.float32,
            PRECISION=_precision(q),
        )


def bundles_of(q: Tensor, arguments: Arguments) -> tuple[Any, ...]:
    """What every kernel takes in one row: sequences, terms, masks, two states, dropout, scale, silu_share."""
    return (
        Sequences.of(arguments),
        Terms.of(q, arguments),
        Masks.of(arguments.visibility),
        _signed(row_state(arguments.seed)),
        _signed(column_state(arguments.seed)),
        Dropout.of(arguments.dropout_p),
        arguments.scale,
        1.0 / (arguments.silu_norm or 1.0),
    )


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of sums of numbers of `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def _on_device(targets: np.ndarray, meta: JaggedMeta) -> Tensor:
    """(B,) int32, copied once a batch."""
    counts = torch.from_numpy(targets.astype(np.int32))
    device = meta.offsets.device
    return meta.cached(("targets", targets.tobytes()), lambda: counts.to(device, non_blocking=True))


def _signed(word: int) -> int:
    """The int32 of the same 32 bits."""
    return word - (word >> 31 << 32)


def _steps(time: TimeBias) -> int:
    """Buckets a doubling; 0 where the buckets are thresholds."""
    return 0 if isinstance(time.buckets, Tensor) else LOG2_STEPS.get(time.buckets, 0)


def _reach(pos: PosBias, longest: int) -> int:
    """The distance from which on all have one bucket, or none has a greater one."""
    if pos.kind == "toeplitz":
        return pos.table.shape[1] // 2
    return min(pos.max_distance, max(16, triton.next_power_of_2(longest)))


def _expanded(pos: PosBias, causal: bool, q: Tensor, reach: int) -> Tensor:
    """(H or 1, 2 * reach + 1): an entry for each distance from -reach to reach."""
    table = pos.table.detach().to(wide_dtype(q.dtype))
    if pos.kind == "toeplitz":
        return table.contiguous()
    distances = torch.arange(-reach, reach + 1, device=table.device)
    return table[:, pos.buckets(distances, causal)].contiguous()


def _precision(q: Tensor) -> str:
    """How float32 is multiplied: in three products of TF32, which err about as float32 itself; in one where torch may.

    `torch.set_float32_matmul_precision` says what torch may. Exact products of float32 would not run on tensor cores.
    """
    if q.dtype != torch.float32:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"

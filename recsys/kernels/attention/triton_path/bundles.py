"""What the attention kernels are called with, in bundles: Triton takes named tuples apart at a launch.

No field is None: an argument that a kernel does not read is a tensor that is at hand.
"""

from typing import Any, NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """A (T, H, D) tensor with its strides; the last one is 1."""

    ptr: Tensor
    t: int
    h: int

    @classmethod
    def of(cls, x: Tensor) -> "Rows":
        """The bundle of `x`."""
        return cls(x, x.stride(0), x.stride(1))


class Sequences(NamedTuple):
    """Where the sequences of a batch lie: (B+1,) int64 twice, and (B,) int32 how many last tokens are targets."""

    offsets_q: Tensor
    offsets_k: Tensor
    num_targets: Tensor


class Masks(NamedTuple):
    """Who sees whom, as in `visibility.py`."""

    left: int
    right: int
    num_global: int
    target_group: int


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


class Dropout(NamedTuple):
    """As in `dropout.py`. The states, which differ each step, go beside it: what is in a bundle is specialised."""

    threshold: int
    kept_share: float


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

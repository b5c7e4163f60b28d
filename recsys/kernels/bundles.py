"""Arguments that kernels of several ops take together. Triton takes a named tuple apart at a launch."""

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """A (T, H, D) or (T, H) tensor with its strides; that of D is 1."""

    ptr: Tensor
    t: int
    h: int

    @classmethod
    def of(cls, x: Tensor) -> "Rows":
        """The bundle of `x`."""
        return cls(x, x.stride(0), x.stride(1))


def unit_stride(x: Tensor) -> Tensor:
    """x itself if the numbers of a row lie side by side, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def block_of(width: int) -> int:
    """Numbers of a row in a tile: a power of two that a product takes; 0 where there is no row."""
    return max(16, 1 << (width - 1).bit_length()) if width else 0

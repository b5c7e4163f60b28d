# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""How fast a GPU reads lines of 64 bytes at random: what a table in its memory can at best be asked for."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_N = 32


def sums_of_lines(memory: Tensor, lines: Tensor) -> Tensor:
    """(N,) the sum of each line's words.

    Args:
        memory: (L, 16) int32.
        lines: (N,) int64 numbers of lines.
    """
    out = torch.empty_like(lines)
    _sums_of_lines_kernel[(triton.cdiv(len(lines), BLOCK_N),)](
        memory, lines, out, len(lines), BLOCK_N=BLOCK_N, num_warps=1
    )
    return out


@triton.jit
def _sums_of_lines_kernel(memory_ptr, lines_ptr, out_ptr, count, BLOCK_N: tl.constexpr):
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    line = tl.load(lines_ptr + n, mask=n < count, other=0)
    words = tl.load(memory_ptr + line[:, None] * 16 + tl.arange(0, 16)[None, :], mask=(n < count)[:, None], other=0)
    tl.store(out_ptr + n, tl.sum(words, axis=1).to(tl.int64), mask=n < count)

"""Which attention weights a seed drops: a counter, not a stream.

    drop(b, h, i, j)  iff  row(seed, b, h, i) * column(seed, b, h, j) mod 2**32, read as signed, lies below a threshold

row and column are odd 32-bit hashes (the finalizer of MurmurHash3), so a mask costs one multiplication a weight, and it
is the same for every path, however the sequences are grouped or cut into blocks. b is the number of the sequence in the
batch, i and j count from its first query and key.
"""

from typing import TypeVar

import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)
_WORD = 0xFFFFFFFF
_ROW_SALT, _COLUMN_SALT = 0x9E3779B9, 0x85EBCA6B


def row_state(seed: int) -> int:
    """What all hashes of queries begin with: 32 bits."""
    return _mix(_mix(seed & _WORD, (seed >> 32) & _WORD), _ROW_SALT)


def column_state(seed: int) -> int:
    """What all hashes of keys begin with: 32 bits."""
    return _mix(_mix(seed & _WORD, (seed >> 32) & _WORD), _COLUMN_SALT)


def row_hash(seed: int, sequences: Tensor, queries: Tensor, num_heads: int) -> Tensor:
    """(n, H) int32 for n queries: (n,) numbers of their sequences, (n,) places in these."""
    return _hash(row_state(seed), sequences, queries, num_heads)


def column_hash(seed: int, sequences: Tensor, keys: Tensor, num_heads: int) -> Tensor:
    """(n, H) int32 for n keys: (n,) numbers of their sequences, (n,) places in these."""
    return _hash(column_state(seed), sequences, keys, num_heads)


def dropped(rows: Tensor, columns: Tensor, dropout_p: float) -> Tensor:
    """The definition: (..., Lq, Lk) bool, True with probability `dropout_p` (to 2**-32), of (..., Lq) and (..., Lk)."""
    return rows[..., :, None] * columns[..., None, :] < threshold(dropout_p)


def drop(weights: Tensor, rows: Tensor, columns: Tensor, dropout_p: float, *, in_place: bool = False) -> Tensor:
    """(..., Lq, Lk): `weights` with 0 where `dropped`; the others as they are, not yet divided by 1 - dropout_p.

    Comparing to a bool and selecting by it is slow on the CPU. In float32 one pass does both on the bits, as integers:
    the gradient of a threshold is 0 up to it and passes above it.
    """
    draws, highest_dropped = rows[..., :, None] * columns[..., None, :], threshold(dropout_p) - 1
    if weights.dtype == torch.float32:
        bits = weights.view(torch.int32)
        if in_place:
            torch.ops.aten.threshold_backward.grad_input(bits, draws, highest_dropped, grad_input=bits)
            return weights
        return torch.ops.aten.threshold_backward(bits, draws, highest_dropped).view(torch.float32)
    is_kept = draws.clamp_(highest_dropped, highest_dropped + 1).sub_(highest_dropped).to(weights.dtype)
    return weights.mul_(is_kept) if in_place else weights * is_kept


def threshold(dropout_p: float) -> int:
    """A product of hashes below this int32 drops its weight."""
    return min(max(round(dropout_p * 2**32), 1), 2**32 - 1) - 2**31  # it and the number below it are int32


def _hash(state: int, sequences: Tensor, places: Tensor, num_heads: int) -> Tensor:
    heads = torch.arange(num_heads, device=places.device) * 0x632BE5AB & _WORD
    by_place = _finalized(_finalized(sequences ^ state) ^ (places * 0x2545F491 & _WORD))  # (n,)
    return (_finalized(by_place[:, None] ^ heads) | 1).to(torch.int32)


def _mix(word: int, other: int) -> int:
    return _finalized((word * 31 + other) & _WORD)


def _finalized(word: Word) -> Word:
    """The finalizer of MurmurHash3, on 32 bits held by an integer or by int64 tensors."""
    word = (word ^ (word >> 16)) * 0x85EBCA6B & _WORD
    word = (word ^ (word >> 13)) * 0xC2B2AE35 & _WORD
    return word ^ (word >> 16)

"""Which attention weights a seed drops: a counter, not a stream.

    drop(b, h, i, j)  iff  row(seed, b, h, i) * column(seed, b, h, j) mod 2**32, read as signed, lies below a threshold

row and column are odd 32-bit hashes (the finalizer of MurmurHash3), so a mask costs one multiplication a weight, and it
is the same for every path, however the sequences are grouped or cut into blocks. b is the number of the sequence in the
batch, i and j count from its first query and key.
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_ROW_SALT, _COLUMN_SALT = 0x9E3779B9, 0x85EBCA6B


def row_hash(seed: int, sequences: Tensor, queries: Tensor, num_heads: int) -> Tensor:
    """(n, H) int32 for n queries: (n,) numbers of their sequences, (n,) places in these."""
    return _hash(seed, _ROW_SALT, sequences, queries, num_heads)


def column_hash(seed: int, sequences: Tensor, keys: Tensor, num_heads: int) -> Tensor:
    """(n, H) int32 for n keys: (n,) numbers of their sequences, (n,) places in these."""
    return _hash(seed, _COLUMN_SALT, sequences, keys, num_heads)


def dropped(rows: Tensor, columns: Tensor, dropout_p: float) -> Tensor:
    """The definition: (..., Lq, Lk) bool, True with probability `dropout_p` (to 2**-32), of (..., Lq) and (..., Lk)."""
    return rows[..., :, None] * columns[..., None, :] < _threshold(dropout_p)


def drop(weights: Tensor, rows: Tensor, columns: Tensor, dropout_p: float, *, in_place: bool = False) -> Tensor:
    """(..., Lq, Lk): `weights` with 0 where `dropped`; the others as they are, not yet divided by 1 - dropout_p.

    Comparing to a bool and selecting by it is slow on the CPU. In float32 one pass does both on the bits, as integers:
    the gradient of a threshold is 0 up to it and passes above it.
    """
    draws, highest_dropped = rows[..., :, None] * columns[..., None, :], _threshold(dropout_p) - 1
    if weights.dtype == torch.float32:
        bits = weights.view(torch.int32)
        if in_place:
            torch.ops.aten.threshold_backward.grad_input(bits, draws, highest_dropped, grad_input=bits)
            return weights
        return torch.ops.aten.threshold_backward(bits, draws, highest_dropped).view(torch.float32)
    is_kept = draws.clamp_(highest_dropped, highest_dropped + 1).sub_(highest_dropped).to(weights.dtype)
    return weights.mul_(is_kept) if in_place else weights * is_kept


def _threshold(dropout_p: float) -> int:
    return min(max(round(dropout_p * 2**32), 1), 2**32 - 1) - 2**31  # it and the number below it are int32


def _hash(seed: int, salt: int, sequences: Tensor, places: Tensor, num_heads: int) -> Tensor:
    state = _mix(_mix(seed & _WORD, (seed >> 32) & _WORD), salt)
    heads = torch.arange(num_heads, device=places.device) * 0x632BE5AB & _WORD
    by_place = _mix_tensor(_mix_tensor(sequences ^ state) ^ (places * 0x2545F491 & _WORD))  # (n,)
    return (_mix_tensor(by_place[:, None] ^ heads) | 1).to(torch.int32)


def _mix(word: int, other: int) -> int:
    return int(_mix_tensor(torch.tensor((word * 31 + other) & _WORD)))


def _mix_tensor(word: Tensor) -> Tensor:
    """The finalizer of MurmurHash3 on int64 tensors that hold 32 bits."""
    word = (word ^ (word >> 16)) * 0x85EBCA6B & _WORD
    word = (word ^ (word >> 13)) * 0xC2B2AE35 & _WORD
    return word ^ (word >> 16)

"""A hash of raw ids that never changes: which shard a user belongs to is decided by it.

    integer   splitmix64(two's complement)
    text      splitmix64(sum_j word_j * odd_j + length * odd_0)      modulo 2^64

word_j are the UTF-8 bytes in little-endian words of eight, the last one filled with zeros; odd_j = splitmix64(j) | 1.
splitmix64: Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195. An integer and its decimal text differ.

Rows of embedding tables go by another hash, `string_ids` of `recsys.models.embedding_table`: there two strings that
share a number share a vector, here two users that do are in one shard, which harms nobody. So this one may be a sum,
which takes a column at a time, although texts of one sum are easily made. Both are stored, and neither may change.

polars is imported where a Series is given alone: the leakage checks hash with numpy.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import polars as pl

UInt64s = npt.NDArray[np.uint64]
WORD_BYTES = 8


def hash_ids(ids: "pl.Series") -> UInt64s:
    """The hash of each id, (n,) uint64.

    Args:
        ids: (n,) Int64 or String, no nulls.
    """
    import polars as pl

    if ids.dtype != pl.String:
        return splitmix64(ids.to_numpy().view(np.uint64))
    data, offsets = text_bytes(ids)
    return hash_texts(data, offsets)


def splitmix64(values: UInt64s) -> UInt64s:
    """Well-mixed bits of each value, (n,) uint64; a bijection."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: UInt64s = mixed ^ (mixed >> np.uint64(31))
    return found


def text_bytes(texts: "pl.Series") -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """UTF-8 bytes of all texts, and where each starts, (n+1,) int64.

    Args:
        texts: (n,) String, no nulls.
    """
    import polars as pl

    lengths = texts.str.len_bytes().to_numpy().astype(np.int64)
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    arrow = texts.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, starts, data = arrow.buffers()
    if data is None or not len(texts):
        return np.zeros(0, np.uint8), offsets
    first = int(np.frombuffer(starts, np.int64)[arrow.offset])
    return np.frombuffer(data, np.uint8)[first : first + int(offsets[-1])], offsets


def hash_texts(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> UInt64s:
    """The hash of each text, (n,) uint64.

    Args:
        data: (bytes,) uint8, the texts one after another as UTF-8.
        offsets: (n+1,) int64, where each starts; offsets[0] = 0.
    """
    lengths = np.diff(offsets)
    sums = lengths.astype(np.uint64) * _odd(0)
    if not len(lengths):
        return sums
    padded = np.concatenate([data, np.zeros(WORD_BYTES, np.uint8)])
    words = np.ndarray(len(data) + 1, "<u8", padded, strides=(1,))  # the eight bytes from each byte on
    rows = np.arange(len(lengths))
    for number in range(-(-int(lengths.max()) // WORD_BYTES)):
        rows = rows[lengths[rows] > number * WORD_BYTES]
        left = lengths[rows] - number * WORD_BYTES
        unwanted = (np.maximum(WORD_BYTES - left, 0) * 8).astype(np.uint64)
        word = words[offsets[rows] + number * WORD_BYTES].astype(np.uint64)
        sums[rows] += ((word << unwanted) >> unwanted) * _odd(number + 1)
    return splitmix64(sums)


def _odd(number: int) -> np.uint64:
    odd: np.uint64 = splitmix64(np.array([number], np.uint64))[0] | np.uint64(1)
    return odd

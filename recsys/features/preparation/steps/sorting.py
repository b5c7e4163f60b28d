"""Stable orders of integers, and small numbers for ids. Pure functions over arrays.

A stable order is a sort of (value, place) pairs packed into one int64: several times as fast as a stable argsort.
"""

import numpy as np
import polars as pl

from recsys.features.slices import Int64s

WORD_BITS = 63
# Times of whole seconds or milliseconds pack where microseconds would not.
UNITS = (1_000_000, 1_000)


def stable_order(values: Int64s) -> Int64s:
    """The places that put `values` into ascending order, equal ones as they stand, (n,) int64."""
    places = np.arange(len(values), dtype=np.int64)
    if len(values) < 2 or bool((values[1:] >= values[:-1]).all()):
        return places
    small = _packable(values, (len(values) - 1).bit_length())
    if small is None:
        return np.argsort(values, kind="stable")
    bits = (len(values) - 1).bit_length()
    packed = (small << bits) | places
    packed.sort()
    ordered: Int64s = packed & ((1 << bits) - 1)
    return ordered


def order_by(*keys: Int64s) -> Int64s:
    """The places that sort by the first key, then the second, …, then as they stand, (n,) int64."""
    order = stable_order(keys[-1])
    for key in reversed(keys[:-1]):
        order = order[stable_order(key[order])]
    return order


def codes_of(ids: pl.Series) -> tuple[Int64s, pl.Series]:
    """A number from 0 for each id, (n,) int64, and the distinct ids by number.

    Args:
        ids: (n,) Int64 or String, no nulls.
    """
    if ids.dtype == pl.Int64 and len(ids):
        values = ids.to_numpy()
        low, high = int(values.min()), int(values.max())
        if high - low <= 4 * len(values) + 65_536:
            numbers = np.zeros(high - low + 1, np.int64)
            numbers[values - low] = 1
            distinct = np.flatnonzero(numbers) + low
            np.cumsum(numbers, out=numbers)
            return numbers[values - low] - 1, pl.Series(ids.name, distinct)
    known = ids.unique(maintain_order=True)
    numbered = pl.DataFrame({"id": known, "number": np.arange(len(known))})
    codes = pl.DataFrame({"id": ids}).join(numbered, on="id", how="left", maintain_order="left")["number"]
    return codes.to_numpy().astype(np.int64), known


def _packable(values: Int64s, bits: int) -> Int64s | None:
    """Numbers from 0 in the order of the values that leave `bits` bits free, or None."""
    low, high = int(values.min()), int(values.max())
    if (high - low).bit_length() + bits <= WORD_BITS:
        return values - low
    if (high - low).bit_length() > WORD_BITS:
        return None
    for unit in UNITS:
        if ((high - low) // unit).bit_length() + bits <= WORD_BITS:
            small = (values - low) // unit
            if bool((small * unit + low == values).all()):
                return small
    return None

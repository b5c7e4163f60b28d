"""Indices for the users and items of all shards: by first appearance, after those that were given before.

First appearance is over the kept events in the order (time, file, row), or (file, row) where times are not real: with a
split by time the items known at a cut are a prefix.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import polars as pl

from recsys.features.preparation.filters import Kept
from recsys.features.preparation.steps.hashing import text_bytes
from recsys.features.preparation.steps.sorting import codes_of, order_by
from recsys.features.slices import Int32s, Int64s
from recsys.features.vocabulary import IdKind, Vocabulary

NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Merged:
    """Indices.

    Attributes:
        users, items: the vocabularies.
        user_index: of each part, (n,) int64; 0 is not kept.
        item_index: of each part, the index of each of its items; 0 is not kept.
    """

    users: Vocabulary
    items: Vocabulary
    user_index: list[Int64s]
    item_index: list[Int64s]


def merge(
    kept: Kept, is_timed: bool, kinds: tuple[IdKind, IdKind], known: tuple[pl.Series, pl.Series] | None = None
) -> Merged:
    """The indices of everything that is kept.

    Args:
        kept: the arranged shards, filtered.
        is_timed: whether the order keys are times.
        kinds: of user and item ids.
        known: raw user and item ids that have an index already, index 1 first; rows below 0 are their events.
    """
    firsts = [_part_firsts(kept, number, is_timed) for number in range(len(kept.parts))]
    items = _vocabulary([part.items for part in kept.parts], [item for _, item in firsts], kinds[1], known and known[1])
    users = _vocabulary(
        [part.users for part in kept.parts], [user for user, _ in firsts], kinds[0], known and known[0], are_apart=True
    )
    return Merged(users[0], items[0], users[1], items[1])


def item_numbers(parts: Sequence[pl.Series]) -> tuple[list[Int64s], int]:
    """Of each part, the number in 0..G-1 of each of its items; and G."""
    codes, distinct = codes_of(pl.concat(parts))
    return _split(codes, [len(part) for part in parts]), len(distinct)


def series_of(vocabulary: Vocabulary) -> pl.Series:
    """The raw ids by index, index 1 first, Int64 or String."""
    import pyarrow as pa

    data, offsets = np.ascontiguousarray(vocabulary.data), np.ascontiguousarray(vocabulary.offsets)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    texts = pl.Series(pa.Array.from_buffers(pa.large_string(), len(vocabulary), buffers), dtype=pl.String)
    return texts.cast(pl.Int64) if vocabulary.kind == "int" else texts


Firsts = tuple[Int64s, Int64s]


def _part_firsts(kept: Kept, number: int, is_timed: bool) -> tuple[Firsts, Firsts]:
    """First time (or row) and row of each user and of each item of a part; NEVER where nothing is kept."""
    part = kept.parts[number]
    row, item = np.asarray(part.row), np.asarray(part.item)
    time = np.asarray(part.key) if is_timed else row
    user = np.repeat(np.arange(len(part.offsets) - 1), np.diff(part.offsets))
    events = kept.events(number)
    if not events.all():
        row, item, time, user = row[events], item[events], time[events], user[events]
    return (
        _firsts(user, len(part.offsets) - 1, time, row),
        _firsts(item, len(kept.numbers[number]), time, row),
    )


def _firsts(codes: Int64s | Int32s, num_codes: int, time: Int64s, row: Int64s) -> Firsts:
    first_time, first_row = np.full(num_codes, NEVER), np.full(num_codes, NEVER)
    np.minimum.at(first_time, codes, time)
    is_first = time == first_time[codes]
    np.minimum.at(first_row, codes[is_first], row[is_first])
    return first_time, first_row


def _vocabulary(
    ids: Sequence[pl.Series],
    firsts: Sequence[Firsts],
    kind: IdKind,
    known: pl.Series | None,
    are_apart: bool = False,  # no id stands in two parts
) -> tuple[Vocabulary, list[Int64s]]:
    """The vocabulary, and of each part the index of each id."""
    lengths = [len(part) for part in ids]
    before = pl.Series(ids[0].name, [], ids[0].dtype) if known is None else known.alias(ids[0].name)
    everything = pl.concat([before, *ids])
    is_numbered = are_apart and not len(before)
    numbers, distinct = (np.arange(len(everything)), everything) if is_numbered else codes_of(everything)
    time, row = np.full(len(distinct), NEVER), np.full(len(distinct), NEVER)
    flat = numbers[len(before) :]
    times, rows = (np.concatenate([pair[place] for pair in firsts]) for place in (0, 1))
    np.minimum.at(time, flat, times)
    is_first = times == time[flat]
    np.minimum.at(row, flat[is_first], rows[is_first])
    index = np.zeros(len(distinct), np.int64)
    index[numbers[: len(before)]] = np.arange(1, len(before) + 1)
    new = np.flatnonzero((index == 0) & (row < NEVER))
    new = new[order_by(time[new], row[new])]
    index[new] = np.arange(len(before) + 1, len(before) + len(new) + 1)
    return vocabulary_of(pl.concat([before, distinct[new]]), kind), _split(index[flat], lengths)


def vocabulary_of(ids: pl.Series, kind: IdKind) -> Vocabulary:
    """The vocabulary of distinct ids in this order."""
    data, offsets = text_bytes(ids.cast(pl.String))
    return Vocabulary(data, offsets, kind)


def _split(flat: Int64s, lengths: Sequence[int]) -> list[Int64s]:
    return np.split(flat, np.cumsum(lengths)[:-1])

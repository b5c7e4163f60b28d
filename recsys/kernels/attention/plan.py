"""How the torch path cuts a jagged batch: worked out on the host once a batch and mask, in numpy.

A sequence is one item. Where both sides of the window are closed, a long sequence is cut into blocks of queries, each
an item with the keys around it, so that memory and time stay linear in the length.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.attention.grouping import cheapest_groups
from recsys.kernels.attention.tiles import Piece, Places, Plan, Side, Tile
from recsys.kernels.jagged import JaggedMeta

MIN_BLOCK, MAX_BLOCK = 64, 1024
CAUSAL_ROWS = 64  # queries of a dense piece that sees nothing behind them: the triangle above it is not formed


@dataclass(frozen=True)
class _Items:
    """A column each, (n,) int64; `first_q`, `first_k` and `shift` are counted in the item's own sequence."""

    sequence: np.ndarray
    first_q: np.ndarray
    len_q: np.ndarray
    first_k: np.ndarray
    len_k: np.ndarray
    shift: np.ndarray  # place of a query among the keys, minus its number

    def take(self, chosen: np.ndarray) -> "_Items":
        columns = (self.sequence, self.first_q, self.len_q, self.first_k, self.len_k, self.shift)
        return _Items(*(column[chosen] for column in columns))


@dataclass(frozen=True)
class _Slots:
    """What stands in the slots of one tile."""

    index_q: np.ndarray  # (n, len_q)
    index_k: np.ndarray  # (n, len_k)
    place_q: np.ndarray  # (n, len_q), among the keys
    place_k: np.ndarray  # (n, len_k)
    is_query: np.ndarray  # (n, len_q) bool, False for padding
    is_key: np.ndarray  # (n, len_k) bool


@dataclass(frozen=True)
class _Mask:
    left: int
    right: int
    is_square: bool  # plain causal self attention
    is_dense: bool
    max_cells: int


def make_plan(
    meta_q: JaggedMeta, meta_k: JaggedMeta, causal: bool, window: tuple[int, int], max_cells: int, is_dense: bool
) -> Plan:
    """The tiles of a batch.

    Args:
        causal, window: as in `jagged_attention`.
        max_cells: cells (items x queries x keys) that one piece may fill with a mask or, if `is_dense`, with scores.
        is_dense: pieces are to be run as explicit score matrices, with an explicit causal mask.
    """
    left, right = window[0], 0 if causal else window[1]
    mask = _Mask(left, right, meta_q is meta_k and left < 0 and right == 0, is_dense, max_cells)
    items = _items(meta_q, meta_k, left, right)
    groups = [items.take(chosen) for chosen in cheapest_groups(items.len_q, items.len_k)]
    slots = [_slots(group, right) for group in groups]
    tiles, start_q, start_k = [], 0, 0
    for slot in slots:
        tiles.append(_tile(slot, mask, start_q, start_k, meta_q.offsets.device))
        start_q, start_k = start_q + slot.index_q.size, start_k + slot.index_k.size
    queries = [(g.sequence, s.index_q, s.is_query) for g, s in zip(groups, slots, strict=True)]
    keys = [(g.sequence, s.index_k, s.is_key) for g, s in zip(groups, slots, strict=True)]
    return Plan(tuple(tiles), _side(meta_q, queries), _side(meta_k, keys))


def _items(meta_q: JaggedMeta, meta_k: JaggedMeta, left: int, right: int) -> _Items:
    """One item a sequence, from its first query that sees a key; long ones cut where the window is narrow."""
    num_q, num_k = meta_q.lengths, meta_k.lengths
    shift = num_k - num_q
    first_q = np.maximum(0, -shift - right) if right >= 0 else np.zeros_like(num_q)
    chosen = np.flatnonzero((num_k > 0) & (first_q < num_q))
    zeros = np.zeros_like(num_q)
    whole = _Items(np.arange(len(num_q)), first_q, num_q - first_q, zeros, num_k, shift).take(chosen)
    if left < 0 or right < 0:
        return whole
    block = int(np.clip(1 << ((left + right) // 2).bit_length(), MIN_BLOCK, MAX_BLOCK))
    is_long = (whole.len_q > 2 * block) & (whole.len_k > block + left + right + 1)
    parts = [whole.take(np.flatnonzero(~is_long))]
    parts += [_blocks(whole.take(np.array([i])), block, left, right) for i in np.flatnonzero(is_long)]
    columns = ("sequence", "first_q", "len_q", "first_k", "len_k", "shift")
    return _Items(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


def _blocks(item: _Items, block: int, left: int, right: int) -> _Items:
    """The blocks of a single whole sequence."""
    end_q, num_k, shift = int(item.first_q[0] + item.len_q[0]), int(item.len_k[0]), int(item.shift[0])
    first_q = np.arange(int(item.first_q[0]), end_q, block)
    len_q = np.minimum(block, end_q - first_q)
    first_k = np.maximum(0, first_q + shift - left)
    len_k = np.minimum(num_k, first_q + len_q + shift + right) - first_k
    same = np.ones_like(first_q)
    return _Items(item.sequence * same, first_q, len_q, first_k, len_k, item.shift * same)


def _slots(items: _Items, right: int) -> _Slots:
    width_q, width_k = np.arange(items.len_q.max()), np.arange(items.len_k.max())
    is_query, is_key = width_q < items.len_q[:, None], width_k < items.len_k[:, None]
    index_q = items.first_q[:, None] + np.minimum(width_q, items.len_q[:, None] - 1)
    index_k = items.first_k[:, None] + np.minimum(width_k, items.len_k[:, None] - 1)
    place_k = items.first_k[:, None] + width_k
    if right == 0:  # no query sees behind its place, so padding needs no mask: it may see padding
        running = (items.first_q + items.shift)[:, None] + width_q
        place_q = np.minimum(running, place_k[:, -1:])
    else:
        place_q = index_q + items.shift[:, None]
    return _Slots(index_q, index_k, place_q, place_k, is_query, is_key)


def _tile(slots: _Slots, mask: _Mask, start_q: int, start_k: int, device: torch.device) -> Tile:
    n, len_q = slots.index_q.shape
    return Tile(
        start_q=start_q,
        start_k=start_k,
        n=n,
        len_q=len_q,
        len_k=slots.index_k.shape[1],
        pieces=tuple(_pieces(slots, mask, device)),
    )


def _pieces(slots: _Slots, mask: _Mask, device: torch.device) -> list[Piece]:
    n, len_q = slots.index_q.shape
    len_k = slots.index_k.shape[1]
    whole = (slice(0, n), slice(0, len_q), slice(0, len_k))
    if not mask.is_dense:
        if mask.is_square:
            return [Piece(*whole, is_causal=True, places=None)]
        if mask.left < 0 and mask.right < 0:
            return [Piece(*whole, is_causal=False, places=_places(slots, whole, mask, device))]
    most_rows = CAUSAL_ROWS if mask.is_dense and mask.right == 0 else len_q
    pieces = []
    for items, queries in _cuts(n, len_q, len_k, mask.max_cells, most_rows):
        part = (items, queries, _keys_seen(slots, items, queries, mask))
        pieces.append(Piece(*part, is_causal=False, places=_places(slots, part, mask, device)))
    return pieces


def _cuts(n: int, len_q: int, len_k: int, max_cells: int, most_rows: int) -> list[tuple[slice, slice]]:
    """Items and query slots of pieces with at most `max_cells` cells (or one query) and `most_rows` query slots."""
    rows = min(len_q, most_rows)
    items = max(1, max_cells // (rows * len_k))
    rows = rows if items > 1 else min(rows, max(1, max_cells // len_k))
    return [
        (slice(i, min(i + items, n)), slice(a, min(a + rows, len_q)))
        for i in range(0, n, items)
        for a in range(0, len_q, rows)
    ]


def _keys_seen(slots: _Slots, items: slice, queries: slice, mask: _Mask) -> slice:
    """The key slots that any of these queries may see."""
    first_k, place_q = slots.place_k[items, 0], slots.place_q[items, queries]
    len_k = slots.place_k.shape[1]
    low = 0 if mask.left < 0 else int((place_q[:, 0] - mask.left - first_k).min())
    high = len_k if mask.right < 0 else int((place_q[:, -1] + mask.right + 1 - first_k).max())
    return slice(max(0, low), min(len_k, high))


def _places(slots: _Slots, part: tuple[slice, slice, slice], mask: _Mask, device: torch.device) -> Places | None:
    items, queries, keys = part
    place_q, place_k, is_key = slots.place_q[items, queries], slots.place_k[items, keys], slots.is_key[items, keys]
    all_keys = mask.right == 0 or bool(is_key.all())
    if mask.left < 0 and mask.right < 0:
        if all_keys:
            return None
        place_q = place_q[:, :1]  # the same keys for all queries
    elif all_keys and bool((place_q - place_q[:1] == place_k[:, :1] - place_k[:1, :1]).all()):
        place_q, place_k, is_key = place_q[:1], place_k[:1], is_key[:1]  # the same mask for all items
    return Places(
        queries=_tensor(place_q, device),
        keys=_tensor(place_k, device),
        is_key=None if all_keys else _tensor(is_key, device),
        left=mask.left,
        right=mask.right,
    )


def _side(meta: JaggedMeta, tiles: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Side:
    """From (sequence, index, is real) of each tile."""
    starts, device = meta.starts, meta.offsets.device
    none = np.zeros(0, dtype=np.int64)
    sequences = np.concatenate([none, *(np.repeat(sequence, at.shape[1]) for sequence, at, _ in tiles)])
    places = np.concatenate([none, *(at.ravel() for _, at, _ in tiles)])
    index = starts[sequences] + places
    is_real = np.concatenate([none.astype(bool), *(real.ravel() for _, _, real in tiles)])
    num_slots, slots = len(index), np.flatnonzero(is_real)
    inverse = np.full(meta.total, num_slots, dtype=np.int64)
    inverse[index[slots]] = slots
    is_identity = num_slots == meta.total and bool((index == np.arange(num_slots)).all())
    has_repeats = len(slots) > np.count_nonzero(inverse < num_slots)
    return Side(
        num_rows=meta.total,
        num_slots=num_slots,
        sequences=_tensor(sequences, device),
        places=_tensor(places, device),
        index=None if is_identity else _tensor(index, device),
        inverse=None if has_repeats else _tensor(inverse, device),
        padding=_tensor(np.flatnonzero(~is_real), device),
    )


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)

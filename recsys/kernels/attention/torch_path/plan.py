"""How the torch path cuts a jagged batch: worked out on the host once a batch and mask, in numpy.

`regions.py` tells the items; here those of one region and similar size are padded into tiles, and tiles are cut into
pieces: where both sides of the window are closed, memory and time stay linear in the length, and no piece with a mask
or with explicit scores is larger than asked.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.attention.torch_path.grouping import cheapest_groups
from recsys.kernels.attention.torch_path.regions import Items, Region, regions
from recsys.kernels.attention.torch_path.sides import make_side
from recsys.kernels.attention.torch_path.tiles import Piece, Places, Plan, Tile
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta

CAUSAL_ROWS = 64  # queries of a dense piece that sees nothing behind them: the triangle above it is not formed


@dataclass(frozen=True)
class Cut:
    """How tiles become pieces.

    Attributes:
        is_dense: pieces are to be run as explicit score matrices, with an explicit causal mask.
        max_cells: cells (items x queries x keys) that one piece may fill with a mask or, if `is_dense`, with scores.
        rows: queries of a dense piece, where `keys` is given.
        keys: keys of a dense piece; more are cut, and a query's parts are merged. None: never cut.
    """

    is_dense: bool
    max_cells: int
    rows: int = 0
    keys: int | None = None


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


def make_plan(
    meta_q: JaggedMeta, meta_k: JaggedMeta, visibility: Visibility, num_targets: np.ndarray | None, cut: Cut
) -> Plan:
    """The tiles of a batch; `num_targets` (B,) int64."""
    tiles: list[Tile] = []
    queries, keys = [], []
    start_q = start_k = 0
    for region in regions(meta_q, meta_k, visibility, num_targets):
        is_square = meta_q is meta_k and region.left < 0 and region.right == 0
        mask = _Mask(region.left, region.right, is_square)
        for group in _groups(region):
            slots = _slots(group, region.right)
            tiles.append(_tile(slots, group, mask, cut, (start_q, start_k), meta_q.offsets.device))
            start_q, start_k = start_q + slots.index_q.size, start_k + slots.index_k.size
            queries.append((group.sequence, slots.index_q, slots.is_query))
            keys.append((group.sequence, slots.index_k, slots.is_key))
    return Plan(tuple(tiles), make_side(meta_q, queries), make_side(meta_k, keys))


def _groups(region: Region) -> list[Items]:
    return [region.items.take(chosen) for chosen in cheapest_groups(region.items.len_q, region.items.len_k)]


def _slots(items: Items, right: int) -> _Slots:
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


def _tile(slots: _Slots, items: Items, mask: _Mask, cut: Cut, starts: tuple[int, int], device: torch.device) -> Tile:
    n, len_q = slots.index_q.shape
    return Tile(
        start_q=starts[0],
        start_k=starts[1],
        n=n,
        len_q=len_q,
        len_k=slots.index_k.shape[1],
        distance=_tensor(_one_if_same(items.first_q + items.shift - items.first_k), device),
        pieces=tuple(_pieces(slots, mask, cut, device)),
    )


def _pieces(slots: _Slots, mask: _Mask, cut: Cut, device: torch.device) -> list[Piece]:
    n, len_q = slots.index_q.shape
    len_k = slots.index_k.shape[1]
    whole = (slice(0, n), slice(0, len_q), slice(0, len_k))
    if not cut.is_dense:
        if mask.is_square:
            return [Piece(*whole, is_causal=True, places=None, is_whole=True)]
        if mask.left < 0 and mask.right < 0:
            places = _places(slots, whole, mask, device)
            return [Piece(*whole, is_causal=False, places=places, is_whole=True)]
    most_rows = CAUSAL_ROWS if cut.is_dense and mask.right == 0 else len_q
    most_rows = cut.rows if cut.keys is not None else most_rows
    most_keys = len_k if cut.keys is None else max(cut.keys, cut.max_cells // min(most_rows, len_q))
    pieces = []
    for items, queries in _cuts(n, len_q, min(len_k, most_keys), cut.max_cells, most_rows):
        seen = _keys_seen(slots, items, queries, mask)
        for number, keys in enumerate(_even_parts(seen, most_keys)):
            part = (items, queries, keys)
            places = (
                None if cut.keys is not None and _see_all(slots, part, mask) else _places(slots, part, mask, device)
            )
            pieces.append(Piece(*part, is_causal=False, places=places, is_first=number == 0, is_whole=part == whole))
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


def _even_parts(run: slice, most: int) -> list[slice]:
    """The run in parts of about the same size, at most `most` long."""
    length = run.stop - run.start
    number = max(1, -(-length // most))
    ends = [run.start + length * i // number for i in range(number + 1)]
    return [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]


def _keys_seen(slots: _Slots, items: slice, queries: slice, mask: _Mask) -> slice:
    """The key slots that any of these queries may see."""
    first_k, place_q = slots.place_k[items, 0], slots.place_q[items, queries]
    len_k = slots.place_k.shape[1]
    low = 0 if mask.left < 0 else int((place_q[:, 0] - mask.left - first_k).min())
    high = len_k if mask.right < 0 else int((place_q[:, -1] + mask.right + 1 - first_k).max())
    return slice(max(0, low), min(len_k, high))


def _see_all(slots: _Slots, part: tuple[slice, slice, slice], mask: _Mask) -> bool:
    """Whether each of these queries sees each of these keys."""
    items, queries, keys = part
    place_q, place_k = slots.place_q[items, queries], slots.place_k[items, keys]
    if mask.right != 0 and not slots.is_key[items, keys].all():
        return False
    is_near = mask.left < 0 or bool((place_k[:, 0] >= place_q[:, -1] - mask.left).all())
    return is_near and (mask.right < 0 or bool((place_k[:, -1] <= place_q[:, 0] + mask.right).all()))


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


def _one_if_same(values: np.ndarray) -> np.ndarray:
    return values[:1] if bool((values == values[0]).all()) else values


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)

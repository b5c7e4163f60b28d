"""The dense pieces that a jagged batch is cut into, and how its rows go into them and come back.

An *item* is a run of queries with the run of keys that they see. Items of similar size form a *tile*, padded to its
longest; a padded slot repeats the item's last row, so it holds no foreign number. A tile runs in one *piece*, or in
several where a mask or a score matrix would grow too large. `plan.py` makes them, once a batch.
"""

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from recsys.kernels.attention.torch_path.sides import Side

HIDDEN = -1e30  # added to the score of a key that is not seen: its weight is exactly 0


@dataclass(frozen=True)
class Places:
    """Where the query and key slots of a piece stand in their sequences, to tell who sees whom.

    Attributes:
        queries: (n or 1, queries) int64, place of a query among its sequence's keys.
        keys: (n or 1, keys) int64.
        is_key: (n or 1, keys) bool, False for padding that must not be seen; None if there is none.
        left, right: neighbours seen, -1 for no limit.
    """

    queries: Tensor
    keys: Tensor
    is_key: Tensor | None
    left: int
    right: int

    def sees(self) -> Tensor:
        """(n or 1, queries, keys) bool."""
        place_q, place_k = self.queries[:, :, None], self.keys[:, None, :]
        sees = torch.ones_like(place_q >= place_k) if self.is_key is None else self.is_key[:, None, :]
        if self.left >= 0:
            sees = sees & (place_k >= place_q - self.left)
        if self.right >= 0:
            sees = sees & (place_k <= place_q + self.right)
        return sees


@dataclass(frozen=True)
class Piece:
    """Some items of a tile, some of their query slots, and the key slots that these may see."""

    items: slice
    queries: slice
    keys: slice
    is_causal: bool  # the lower triangle of a square; then there are no places
    places: Places | None  # None: all keys are seen
    is_first: bool = True  # no piece before it holds other keys of these queries
    is_whole: bool = False  # the whole tile
    rows: dict[torch.dtype, Tensor] = field(default_factory=dict, compare=False)  # biases that all queries share

    def queries_of(self, view: Tensor) -> Tensor:
        """(items, H, queries, ...) view of a tile's (n, H, len_q, ...)."""
        return view if self.is_whole else view[self.items, :, self.queries]

    def keys_of(self, view: Tensor) -> Tensor:
        """(items, H, keys, ...) view of a tile's (n, H, len_k, ...)."""
        return view if self.is_whole else view[self.items, :, self.keys]

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """(n or 1, 1, queries or 1, keys), 0 where a key is seen and HIDDEN elsewhere; None where all are seen."""
        if self.places is None:
            return None
        if dtype in self.rows:
            return self.rows[dtype]
        bias = self.places.sees().to(dtype).sub_(1.0).mul_(-HIDDEN)[:, None]  # masked_fill_ is 3 times slower
        if bias.shape[2] == 1:  # small, and asked for by every layer, forward and backward
            self.rows[dtype] = bias
        return bias


@dataclass(frozen=True)
class Tile:
    """n items of len_q query and len_k key slots, one after the other in the gathered rows."""

    start_q: int
    start_k: int
    n: int
    len_q: int
    len_k: int
    distance: Tensor  # (n or 1,) int64, from the place of the first key to that of the first query
    pieces: tuple[Piece, ...]

    @property
    def slots_q(self) -> slice:
        """Its query slots."""
        return slice(self.start_q, self.start_q + self.n * self.len_q)

    @property
    def slots_k(self) -> slice:
        """Its key slots."""
        return slice(self.start_k, self.start_k + self.n * self.len_k)

    def queries_of(self, slots: Tensor) -> Tensor:
        """(n, H, len_q, ...) view of the gathered (slots, H, ...)."""
        return _tile_view(slots, self.start_q, self.n, self.len_q)

    def keys_of(self, slots: Tensor) -> Tensor:
        """(n, H, len_k, ...) view of the gathered (slots, H, ...)."""
        return _tile_view(slots, self.start_k, self.n, self.len_k)


@dataclass(frozen=True)
class Plan:
    """The tiles of one batch under one mask."""

    tiles: tuple[Tile, ...]
    queries: Side
    keys: Side

    @cached_property
    def has_parts(self) -> bool:
        """Whether a query's result is put together from several pieces."""
        return bool(self.queries.repeats) or any(not piece.is_first for tile in self.tiles for piece in tile.pieces)

    @property
    def num_cells(self) -> int:
        """Query slots times key slots: the work, padding included."""
        return sum(tile.n * tile.len_q * tile.len_k for tile in self.tiles)


def _tile_view(slots: Tensor, start: int, n: int, length: int) -> Tensor:
    row, head, *rest = slots.stride()
    size, stride = (n, slots.shape[1], length, *slots.shape[2:]), (length * row, head, row, *rest)
    return slots.as_strided(size, stride, slots.storage_offset() + start * row)

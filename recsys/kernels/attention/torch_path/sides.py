"""How the rows of a jagged tensor and the slots of the tiles belong together, in both directions."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.jagged import JaggedMeta


@dataclass(frozen=True)
class Side:
    """The rows and slots of the queries, or of the keys.

    Attributes:
        index: (slots,) int64, the row in each slot; None if slots are rows.
        inverse: (T,) int64, the first slot of each row, the number of slots for a row in no tile.
        repeats: slots and rows, each (r,) int64, of the rows' second slots, of their third, and so on.
        padding: (p,) int64, slots that only fill a tile.
        sequences: (slots,) int64, number of the sequence in each slot.
        places: (slots,) int64, what stands in each slot, counted from its sequence's first row.
    """

    num_slots: int
    sequences: Tensor
    places: Tensor
    index: Tensor | None
    inverse: Tensor
    repeats: tuple[tuple[Tensor, Tensor], ...]
    padding: Tensor

    def gather(self, rows: Tensor) -> Tensor:
        """(slots, ...) of (T, ...), contiguous."""
        if self.index is None:
            return rows.contiguous()
        if rows.dim() == 1:
            return rows.index_select(0, self.index)
        return rows.reshape(rows.shape[0], -1).index_select(0, self.index).view(-1, *rows.shape[1:])

    def buffer(self, *shape: int, dtype: torch.dtype, device: torch.device, fill: float = 0.0) -> Tensor:
        """(slots + 1, *shape), not yet written but for the last row: it holds `fill`, for rows in no tile."""
        buffer = torch.empty(self.num_slots + 1, *shape, dtype=dtype, device=device)
        buffer[-1] = fill
        return buffer

    def first(self, buffer: Tensor) -> Tensor:
        """(T, ...) from a filled buffer: what the first slot of each row holds."""
        if self.index is None:
            return buffer[:-1]
        return buffer.view(buffer.shape[0], -1).index_select(0, self.inverse).view(-1, *buffer.shape[1:])

    def scatter(self, buffer: Tensor) -> Tensor:
        """(T, ...) from a filled buffer. A row with several slots gets their sum."""
        rows = self.first(buffer)
        for slots, repeated in self.repeats:
            rows.index_add_(0, repeated, buffer.index_select(0, slots))
        return rows


def make_side(meta: JaggedMeta, tiles: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Side:
    """From (sequence, index, is real) of each tile."""
    device = meta.offsets.device
    none = np.zeros(0, dtype=np.int64)
    sequences = np.concatenate([none, *(np.repeat(sequence, at.shape[1]) for sequence, at, _ in tiles)])
    places = np.concatenate([none, *(at.ravel() for _, at, _ in tiles)])
    index = meta.starts[sequences] + places
    is_real = np.concatenate([none.astype(bool), *(real.ravel() for _, _, real in tiles)])
    num_slots, slots = len(index), np.flatnonzero(is_real)
    is_identity = num_slots == meta.total and bool((index == np.arange(num_slots)).all())
    inverse = np.full(meta.total, num_slots, dtype=np.int64)
    inverse[index[slots]] = slots
    repeats: list[tuple[np.ndarray, np.ndarray]] = []
    if len(slots) > np.count_nonzero(inverse < num_slots):
        (first, rows), *repeats = _ranks(index[slots], slots)
        inverse[rows] = first
    return Side(
        num_slots=num_slots,
        sequences=_tensor(sequences, device),
        places=_tensor(places, device),
        index=None if is_identity else _tensor(index, device),
        inverse=_tensor(inverse, device),
        repeats=tuple((_tensor(at, device), _tensor(rows, device)) for at, rows in repeats),
        padding=_tensor(np.flatnonzero(~is_real), device),
    )


def _ranks(rows: np.ndarray, slots: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The first slot of each row with that row, then the second slots, and so on."""
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    is_first = np.ones(len(rows), dtype=bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    rank = np.arange(len(rows)) - np.maximum.accumulate(np.where(is_first, np.arange(len(rows)), 0))
    chosen = [order[rank == r] for r in range(int(rank.max(initial=0)) + 1)]
    return [(slots[at], rows[at]) for at in chosen]


def _tensor(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)

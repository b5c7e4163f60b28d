"""What runs one piece: torch's fused kernel, explicit scores under a softmax, or explicit scores under SiLU."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recsys.kernels.attention.bias import PosBias, TimeBias
from recsys.kernels.attention.dropout import column_hash, row_hash
from recsys.kernels.attention.torch_path.dense import (
    Dropout,
    dense_backward,
    dense_forward,
    silu_backward,
    silu_forward,
)
from recsys.kernels.attention.torch_path.fused import fused_backward, fused_forward
from recsys.kernels.attention.torch_path.score_terms import ScoreTables, ScoreTerm
from recsys.kernels.attention.torch_path.tiles import Piece, Plan, Tile


@dataclass(frozen=True)
class Kernel:
    """How one call weighs its scores; `silu_norm` None means softmax."""

    is_dense: bool
    scale: float
    dropout_p: float
    seed: int
    silu_norm: float | None

    @property
    def is_softmax(self) -> bool:
        """Whether weights have a denominator, and results an lse."""
        return self.silu_norm is None

    def start(self, plan: Plan, num_heads: int, biases: tuple[TimeBias | None, PosBias | None, bool]) -> "Run":
        """The kernel with what it needs in each slot of a plan; `biases` are those of time, of position, and causal."""
        time, pos, causal = biases
        tables = None if time is None and pos is None else ScoreTables.of(plan, time, pos, causal)
        return Run(self, self._hashes(plan, num_heads), tables)

    def _hashes(self, plan: Plan, num_heads: int) -> tuple[Tensor, Tensor] | None:
        """(slots, H) int32 of queries and keys, which say what is dropped; None without dropout."""
        if self.dropout_p == 0:
            return None
        rows = row_hash(self.seed, plan.queries.sequences, plan.queries.places, num_heads)
        return rows, column_hash(self.seed, plan.keys.sequences, plan.keys.places, num_heads)


@dataclass(frozen=True)
class Run:
    """A kernel at work on the pieces of one plan, forward or backward."""

    kernel: Kernel
    hashes: tuple[Tensor, Tensor] | None
    tables: ScoreTables | None

    def again(self) -> "Run":
        """The same, with the gradients of its tables at 0."""
        return replace(self, tables=None if self.tables is None else self.tables.cleared())

    @property
    def table_grads(self) -> tuple[Tensor | None, Tensor | None]:
        """Of the time and of the position table, (H or 1, NB) float64, of the pieces so far."""
        return (None, None) if self.tables is None else self.tables.grads

    def forward(self, q: Tensor, k: Tensor, v: Tensor, tile: Tile, piece: Piece) -> tuple[Tensor, Tensor | None]:
        """Out and lse of a piece; SiLU has no lse."""
        kernel = self.kernel
        if not kernel.is_dense:
            return fused_forward(q, k, v, piece.bias(q.dtype), kernel.scale, piece.is_causal)
        mask, terms = piece.bias(wide(q.dtype)), self._terms(tile, piece)
        if kernel.silu_norm is not None:
            return silu_forward(q, k, v, mask, kernel.scale, kernel.silu_norm, terms), None
        return dense_forward(q, k, v, mask, kernel.scale, self._dropout(tile, piece), terms)

    def backward(
        self,
        grads: tuple[Tensor, Tensor | None],
        saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        tile: Tile,
        piece: Piece,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of q, k, v; `grads` are those of out and lse, `saved` is (q, k, v, out, lse)."""
        kernel = self.kernel
        if not kernel.is_dense:
            return fused_backward(*grads, *saved, piece.bias(saved[0].dtype), kernel.scale, piece.is_causal)
        mask, terms = piece.bias(wide(saved[0].dtype)), self._terms(tile, piece)
        if kernel.silu_norm is not None:
            return silu_backward(grads[0], *saved[:3], mask, kernel.scale, kernel.silu_norm, terms)
        return dense_backward(*grads, *saved, mask, kernel.scale, self._dropout(tile, piece), terms)

    def _terms(self, tile: Tile, piece: Piece) -> list[ScoreTerm]:
        return [] if self.tables is None else self.tables.terms(tile, piece)

    def _dropout(self, tile: Tile, piece: Piece) -> Dropout | None:
        if self.hashes is None:
            return None
        rows, columns = tile.queries_of(self.hashes[0]), tile.keys_of(self.hashes[1])
        return Dropout(piece.queries_of(rows), piece.keys_of(columns), self.kernel.dropout_p)


def wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or the wider dtype."""
    return torch.promote_types(dtype, torch.float32)

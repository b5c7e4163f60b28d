"""A table of fixed size: ids are hashed into it, and strangers share rows.

    row(id) = mix(id xor mix(seed)) mod num_rows

Of n ids in m rows a share 1 - (1 - e^-x) / x, x = n / m, has no row of its own: what a table without collisions is
measured against. `mix` is the finalizer of SplitMix64 (Steele, Lea and Flood 2014, OOPSLA).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from recsys.kernels.mixing import mixed, shifted
from recsys.kernels.row_pages import RowOptimizer, RowPages
from recsys.models.table_module import TableModule, learning_rate


def mixed_with(seed: int, ids: Tensor) -> Tensor:
    """Int64 of the shape of `ids` (int64): one to one for each seed, in [-2^63, 2^63)."""
    return mixed(ids ^ mixed(torch.tensor(seed)))


def rows_of(ids: Tensor, num_rows: int, seed: int) -> Tensor:
    """Int64 in [0, num_rows), of the shape of `ids`."""
    return shifted(mixed_with(seed, ids), 1) % num_rows


def lost_share(ids_per_row: float) -> float:
    """The expected share of ids that have no row of their own: 1 - (1 - e^-x) / x."""
    return 1 + math.expm1(-ids_per_row) / ids_per_row if ids_per_row > 0 else 0.0


class HashedEmbedding(TableModule):
    """Vectors of ids hashed into `num_rows` rows, each with its optimizer's state.

    Args:
        width: D, numbers of a row.
        num_rows: rows.
        optimizer: of the rows.
        init_std: of the normal distribution that rows begin with.
        seed: of the hash, and of the first vectors.
        hash_seed: of the hash alone; by default `seed`.

    Raises:
        ValueError: a number is out of range.
    """

    needed = ("vectors", "states", "hash_seed")

    def __init__(
        self,
        width: int,
        num_rows: int,
        optimizer: RowOptimizer,
        *,
        init_std: float = 0.01,
        seed: int = 0,
        hash_seed: int | None = None,
    ) -> None:
        super().__init__()
        if num_rows < 1:
            raise ValueError(f"num_rows={num_rows}; wanted at least 1")
        if init_std < 0:
            raise ValueError(f"init_std={init_std}; wanted at least 0")
        self.width, self.num_rows, self.hash_seed = width, num_rows, seed if hash_seed is None else hash_seed
        self._pages = RowPages(width, optimizer)
        self._pages.grow(num_rows)
        self._looked_up: list[tuple[Tensor, Tensor]] = []
        rows = torch.arange(num_rows)
        self._pages.begin(rows, rows, seed, init_std, 0)

    def forward(self, ids: Tensor) -> Tensor:
        """(*shape, D) float32 of ids int64 of any shape; with gradients in training mode."""
        rows = rows_of(ids.reshape(-1), self.num_rows, self.hash_seed)
        vectors = self._pages.gather(rows)
        if self.training and torch.is_grad_enabled():
            self._looked_up.append((rows, vectors.requires_grad_()))
        return vectors.view(*ids.shape, self.width)

    def step(self, lr: float) -> None:
        """Update the rows by the gradients of the lookups since the last step.

        Raises:
            ValueError: `lr` is negative or no finite number; nothing is applied.
        """
        rate = learning_rate(lr)
        looked_up = [(rows, vectors.grad) for rows, vectors in self._looked_up if vectors.grad is not None]
        self._looked_up.clear()
        if looked_up:
            self._pages.update(
                torch.cat([rows for rows, _ in looked_up]), torch.cat([part for _, part in looked_up]), rate, 0
            )

    def clock(self, seconds: float) -> None:
        """Nothing: a row has no age."""

    def expire(self) -> int:
        """0: nothing is ever dropped."""
        return 0

    def gauges(self) -> dict[str, float]:
        """`size`, the rows, and `bytes`, of their vectors and states."""
        row_bytes = 4 * (self.width + self._pages.state_width)
        return {"size": self.num_rows, "bytes": self.num_rows * row_bytes}

    def table_state(self) -> dict[str, Tensor]:
        """Vectors and states of all rows, and the seed of the hash."""
        vectors, states, _ = self._pages.read(torch.arange(self.num_rows))
        return {"vectors": vectors, "states": states, "hash_seed": torch.tensor(self.hash_seed)}

    def load_table_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `table_state` gave; gradients since the last step are dropped.

        Raises:
            ValueError: it is of another table; nothing is changed.
        """
        if fault := self._fault_of(state):
            raise ValueError(fault)
        self.hash_seed = int(state["hash_seed"])
        self._pages.write(torch.arange(self.num_rows), state["vectors"], state["states"], 0)
        self._looked_up.clear()

    def _fault_of(self, state: Mapping[str, Tensor]) -> str | None:
        """Why the state is of another table. How wide the optimizer's state is tells which one it was."""
        if others := sorted(state.keys() - set(self.needed)):
            return f"the state has {others[0]!r}, which a hashed table has not"
        rows, of_optimizer = tuple(state["vectors"].shape), tuple(state["states"].shape)
        if rows != (self.num_rows, self.width):
            return f"the state has rows of the shape {rows}; wanted {(self.num_rows, self.width)}"
        if of_optimizer != (self.num_rows, self._pages.state_width):
            return (
                f"the state's optimizer keeps {of_optimizer[-1]} numbers beside a row, {self._pages.optimizer.name} "
                f"keeps {self._pages.state_width}; load it into a table of the optimizer it was trained with"
            )
        return None

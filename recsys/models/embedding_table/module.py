"""Embeddings of 64-bit ids without collisions: an nn.Module whose rows come, learn, age and go.

    embedding = CollisionlessEmbedding(TableConfig(width=64))
    loss = model(embedding(ids)); loss.backward(); embedding.step(lr=0.05)

In training mode a new id gets a row at its first look-up; in evaluation mode nothing changes. The gradients of rows are
no parameters' and wait for `step`, which applies the rows' own optimizer; the learned vector of unknown ids is a
parameter, `unknown`, and belongs to the optimizer of the rest.

Paper: Liu et al. 2022, arXiv:2209.07663.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from recsys.models.embedding_table.config import TableConfig
from recsys.models.embedding_table.ids import check_ids
from recsys.models.embedding_table.table import EmbeddingTable
from recsys.models.table_module import TableModule, learning_rate


class CollisionlessEmbedding(TableModule):
    """Vectors by id.

    Args:
        config: of the table.
        page_rows: rows of a page of memory, a power of two; by default the fewest that take 2 MB.
        device: of ids and rows.
    """

    needed = ("ids", "generator")

    def __init__(
        self, config: TableConfig, *, page_rows: int | None = None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.config = config
        self.table = EmbeddingTable(config, page_rows=page_rows, device=device)
        learned = torch.zeros(config.width, device=device)
        self.unknown = nn.Parameter(learned) if config.unknown == "learned" else None
        self._anchor = torch.zeros(0, requires_grad=True)  # autograd calls nobody back who has no input to learn
        self.generator = torch.Generator().manual_seed(config.seed)  # of the id dropout
        self._waiting: list[_LookUp] = []  # with their gradients

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.config.width

    def forward(self, ids: Tensor) -> Tensor:
        """(…, width) vectors of ids (…) int64; an id without a row reads the unknown vector.

        Raises:
            ValueError: `ids` is no tensor of int64.
        """
        check_ids(ids)
        flat = ids.reshape(-1)
        rows = self.rows_of(flat)
        if self.training and self.config.id_dropout:
            drawn = torch.rand(len(rows), generator=self.generator).to(rows.device)
            rows = torch.where(drawn < self.config.id_dropout, -1, rows)
        return self.of_rows(rows, flat).view(*ids.shape, self.width)

    def rows_of(self, ids: Tensor) -> Tensor:
        """(N,) int64 rows of ids (N,) int64, in training those of new ids too; -1 for an id without a row."""
        return self.table.look_up(ids) if self.training else self.table.find(ids)

    def of_rows(self, rows: Tensor, ids: Tensor | None = None) -> Tensor:
        """(N, width) vectors of rows (N,) int64 of the table; -1 reads the unknown vector.

        Args:
            rows: as `rows_of` gave them.
            ids: (N,) int64, theirs; read from the table where they are not given.
        """
        of_rows = self.table.ids_of(rows) if ids is None else ids
        vectors: Tensor = _Gathered.apply(self._anchor, self, rows, of_rows)  # type: ignore[no-untyped-call]  # torch has no types for it
        if self.unknown is None:
            return vectors
        return torch.where((rows < 0)[:, None], self.unknown, vectors)

    def step(self, lr: float) -> None:
        """Apply the gradients of all look-ups since the last step, and begin the next one.

        Raises:
            ValueError: `lr` is negative or no finite number; nothing is applied.
        """
        rate = learning_rate(lr)
        if self._waiting:
            self.table.update(*self._gradients(), rate)
        self.drop_gradients()
        self.table.advance()

    def drop_gradients(self) -> None:
        """Forget the gradients since the last step, as `zero_grad` does for parameters."""
        self._waiting.clear()

    @property
    def has_gradients(self) -> bool:
        """Whether gradients wait for a step."""
        return bool(self._waiting)

    def gradient_norm(self) -> Tensor:
        """Scalar: the length of all gradients since the last step, those of a row summed."""
        if not self._waiting:
            return torch.zeros(())
        rows, gradients = self._gradients()
        unique, inverse = torch.unique(rows, return_inverse=True)
        sums = gradients.new_zeros(len(unique), self.width).index_add_(0, inverse, gradients)
        return sums[unique >= 0].norm()

    def scale_gradients(self, factor: float) -> None:
        """Multiply the gradients since the last step."""
        self._waiting = [replace(of_call, gradients=of_call.gradients * factor) for of_call in self._waiting]

    def is_finite(self) -> bool:
        """Whether no number of any row is NaN or infinite."""
        return self.table.pages.is_finite()

    def clock(self, seconds: float) -> None:
        """Say what time it is, for last touch and time to live; without it the machine's clock is read.

        Raises:
            ValueError: it was later before, or it is no number of seconds up to the year 9999.
        """
        self.table.clock.set(seconds)

    def expire(self) -> int:
        """How many rows went because their time to live was over."""
        return self.table.expire()

    def erase(self, ids: Tensor) -> int:
        """How many of the ids (…) int64 had a row, and have none from here on."""
        check_ids(ids)
        return int((self.table.erase(ids.reshape(-1)) >= 0).sum())

    def gauges(self) -> dict[str, float]:
        """Numbers for a dashboard: size, bytes, load, probe lengths, and all counts so far."""
        return self.table.gauges()

    def _gradients(self) -> tuple[Tensor, Tensor]:
        """(N,) rows and (N, width) gradients; -1 where the row is no longer that of the id that was looked up."""
        rows = []
        for of_call in self._waiting:
            if of_call.times_freed == self.table.times_freed:
                rows.append(of_call.rows)
            else:
                here = torch.where(of_call.rows < self.table.num_rows, of_call.rows, -1)
                rows.append(torch.where(self.table.ids_of(here) == of_call.ids, here, -1))
        if len(rows) == 1:
            return rows[0], self._waiting[0].gradients
        return torch.cat(rows), torch.cat([of_call.gradients for of_call in self._waiting])

    def table_state(self) -> dict[str, Tensor]:
        """The table's state, and the random numbers of the id dropout."""
        return self.table.state() | {"generator": self.generator.get_state()}

    def load_table_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `table_state` gave; gradients since the last step are dropped.

        Raises:
            ValueError: it does not fit the table; nothing is changed.
        """
        generator = torch.Generator()
        try:
            generator.set_state(state["generator"].cpu())
        except (RuntimeError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"'generator' is no state of torch's random numbers: {reason}") from error
        self.table.load_state({name: value for name, value in state.items() if name != "generator"})
        self.generator = generator
        self.drop_gradients()

    def _apply(self, fn: Any, recurse: bool = True) -> "CollisionlessEmbedding":
        """As nn.Module has it, for the table too: it moves with the module, and its rows stay float32.

        Raises:
            ValueError: rows would be of another type, or on a device without memory.
        """
        moved = fn(torch.zeros(1, device=self.table.device))
        if moved.dtype != torch.float32:
            raise ValueError(f"the table's rows are float32, not {moved.dtype}; take autocast for narrower numbers")
        if moved.device.type == "meta":
            raise ValueError("a table has no rows on the device meta; wanted cpu or cuda")
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types for it
        if moved.device != self.table.device:
            old = self.table
            self.table = EmbeddingTable(self.config, page_rows=old.pages.page_rows, device=moved.device)
            self.table.prior = old.prior
            self.table.load_state(old.state())
            self._anchor = torch.zeros(0, device=moved.device, requires_grad=True)
            self.drop_gradients()
        return self

    def extra_repr(self) -> str:
        """Shape and policies."""
        config = self.config
        return f"{len(self.table)} ids, width={config.width}, {config.optimizer.name}, eviction={config.eviction}"


@dataclass(frozen=True)
class _LookUp:
    """Rows (N,) that were read, their ids (N,), what `times_freed` was, and the gradients (N, width) that came back."""

    rows: Tensor
    ids: Tensor
    times_freed: int
    gradients: Tensor


class _Gathered(torch.autograd.Function):
    """Rows of the table; their gradients wait for the module's step."""

    @staticmethod
    def forward(ctx: Any, _anchor: Tensor, module: CollisionlessEmbedding, rows: Tensor, ids: Tensor) -> Tensor:
        ctx.module, ctx.rows, ctx.ids, ctx.times_freed = module, rows, ids, module.table.times_freed
        return module.table.pages.gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        ctx.module._waiting.append(_LookUp(ctx.rows, ctx.ids, ctx.times_freed, gradients[0].detach()))
        return None, None, None, None

"""Two tables that train on an endless stream, the same in every process: what a crash must bring back is computed anew.

grown     ever more ids, no limit: pages and index grow
bounded   a capacity, least recently used rows go, a time to live, ids admitted at their second sighting
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from recsys.models.delta.fold import Folded
from recsys.models.embedding_table import AdmissionConfig, EmbeddingTable, RowOptimizer, TableConfig

CUT_EVERY = 5  # steps
Phase = Literal["restore", "growth", "eviction", "cut", "compaction", "other"]


class TableStream:
    """The trainer.

    Args:
        seed: of the stream.
        new_ids: of a step, for `grown`.
        capacity: of `bounded`.
        on_phase: told what a step is about to do.
    """

    def __init__(
        self, seed: int, *, new_ids: int = 4, capacity: int = 12, on_phase: Callable[[Phase], None] = lambda _: None
    ) -> None:
        self.step = 0
        self._seed, self._new_ids, self._capacity, self._on_phase = seed, new_ids, capacity, on_phase
        admission = AdmissionConfig(mode="threshold", threshold=2, capacity=4 * capacity, splits=2)
        grown = TableConfig(width=4, optimizer=RowOptimizer("adagrad"))
        bounded = TableConfig(
            width=4, optimizer=RowOptimizer("adam"), capacity=capacity, eviction="lru", ttl_s=9, admission=admission
        )
        page_rows = 1 << max(3, new_ids.bit_length())
        self.tables = {
            name: EmbeddingTable(config, page_rows=page_rows)
            for name, config in (("grown", grown), ("bounded", bounded))
        }
        self.weights = {"w": torch.zeros(3), "fixed": torch.ones(2)}

    def train(self) -> None:
        """One step."""
        draw = np.random.default_rng((self._seed, self.step))
        self._on_phase("growth")
        old = draw.integers(0, 1 + self.step * self._new_ids, self._new_ids)
        new = np.arange(self.step * self._new_ids, (self.step + 1) * self._new_ids)
        self._update("grown", np.concatenate([old, new]), draw)
        self._on_phase("eviction")
        self._update("bounded", draw.integers(0, 3 * self._capacity, self._capacity // 2), draw)
        if self.step % 3 == 0:
            self.tables["bounded"].expire()
        if self.step % 4 == 0:
            self.tables["grown"].erase(torch.from_numpy(old[:2]))
        self._on_phase("other")
        self.weights["w"] += self.step
        self.step += 1

    @property
    def is_at_a_cut(self) -> bool:
        """Whether a delta is due."""
        return self.step % CUT_EVERY == 0

    @property
    def extra(self) -> dict[str, Any]:
        """Where the stream stands, for a delta."""
        return {"step": self.step, "offset": torch.tensor([self.step])}

    def resume(self, dense: Mapping[str, Tensor], extra: Mapping[str, Any]) -> None:
        """Go on where a delta was cut; the tables are loaded already."""
        self.weights = {name: value.clone() for name, value in dense.items()}
        self.step = int(extra["step"])

    def train_without_log(self, until: int) -> None:
        """Steps to a later one, as a trainer takes them that writes nothing."""
        while self.step < until:
            self.train()
            if self.is_at_a_cut:
                self.follow()

    def follow(self) -> None:
        """What a cut leaves in the tables: who follows, and since when."""
        for table in self.tables.values():
            table.follow(since=table.follow())

    def state(self) -> dict[str, Tensor]:
        """All of it."""
        states = {f"{name}/{key}": v.clone() for name, table in self.tables.items() for key, v in table.state().items()}
        return states | {name: value.clone() for name, value in self.weights.items()}

    def folded_state(self, folded: Folded) -> dict[str, Tensor]:
        """The same of what a log holds."""
        states = {
            f"{name}/{key}": value
            for name, table in self.tables.items()
            for key, value in folded.tables[name].state(table).items()
        }
        return states | dict(folded.dense)

    def _update(self, name: str, ids: "np.ndarray[Any, np.dtype[np.int64]]", draw: np.random.Generator) -> None:
        table = self.tables[name]
        table.clock.set(self.step // 2)
        rows = table.look_up(torch.from_numpy(ids))
        gradients = torch.from_numpy(draw.standard_normal((len(ids), 4), dtype=np.float32))
        table.update(rows, gradients, lr=0.1)
        table.advance()


def different(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[str]:
    """Names of what is not the same in both, bit for bit."""
    names = sorted({*one, *other})
    return [name for name in names if name not in one or name not in other or not torch.equal(one[name], other[name])]

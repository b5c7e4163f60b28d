"""Small tables that a log is kept of."""

from typing import Any

import torch

from recsys.models.embedding_table import (
    EmbeddingTable,
    RowOptimizer,
    TableConfig,
)

WIDTH = 4


def table_of(**settings: Any) -> EmbeddingTable:
    table = EmbeddingTable(TableConfig(**{"width": WIDTH, "optimizer": RowOptimizer("adam"), **settings}), page_rows=8)
    table.clock.set(0)
    return table


def train(table: EmbeddingTable, ids: list[int], second: int | None = None) -> None:
    if second is not None:
        table.clock.set(second)
    rows = table.look_up(torch.tensor(ids, dtype=torch.int64))
    gradients = torch.arange(len(ids) * table.config.width, dtype=torch.float32).view(-1, table.config.width).cos()
    table.update(rows, gradients, lr=0.1)
    table.advance()


def stream(steps: int, most: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, most, (6,), generator=generator).tolist() for _ in range(steps)]

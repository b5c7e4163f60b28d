"""Tables with a file beside tables in memory, and the steps that both take."""

from pathlib import Path
from typing import Any

import torch

from recsys.models.embedding_table import (
    EmbeddingTable,
    RowOptimizer,
    TableConfig,
)

WIDTH = 5
ADAGRAD = RowOptimizer("adagrad", initial_accumulator=0.1)


def table_of(path: Path | None, hot_rows: int = 3, **settings: Any) -> EmbeddingTable:
    cold: dict[str, Any] = {} if path is None else {"hot_rows": hot_rows, "cold_file": str(path)}
    config = TableConfig(**{"width": WIDTH, "optimizer": ADAGRAD, "init_std": 1.0, **cold, **settings})
    return EmbeddingTable(config, page_rows=8)


def ids_of(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def train(table: EmbeddingTable, ids: torch.Tensor, second: float) -> torch.Tensor:
    """One step of two look-ups; the gradients are a function of the place and the vectors."""
    table.clock.set(second)
    rows = torch.cat([table.look_up(ids), table.look_up(ids[:2])])
    gradients = table.pages.gather(rows) * 0.5 + torch.arange(len(rows))[:, None] / 7
    table.update(rows, gradients, lr=0.3)
    table.advance()
    return rows


def both(path: Path, steps: int = 20, most: int = 12, **settings: Any) -> tuple[EmbeddingTable, EmbeddingTable]:
    """A table in memory, and one with a file, after the same steps."""
    tables = table_of(None, **settings), table_of(path, **settings)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        ids = torch.randint(0, most, (4,), generator=generator)
        for table in tables:
            train(table, ids, step)
    return tables

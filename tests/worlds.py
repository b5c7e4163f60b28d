"""Logs in which a side column says what comes next, and ids alone do not."""

from pathlib import Path

import numpy as np
import polars as pl

from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, prepare
from recsys.features.splits import SplitConfig

START = 1_600_000_000
LOO = SplitConfig(protocol="loo")


def prepare_log(
    folder: Path, name: str, rows: list[tuple[str, str, int, str]], items: Path | None = None, shards: int | None = None
) -> Path:
    """The folder of a dataset prepared of (user, item, second, event type)."""
    write_log(folder / f"{name}.csv", rows)
    prepare(folder / f"{name}.csv", folder / name, PrepareConfig(split=LOO, items=items, shards=shards))
    return folder / name


def write_log(path: Path, rows: list[tuple[str, str, int, str]]) -> Path:
    """The rows as a CSV."""
    lines = [f"{user},{item},{START + second},{kind}" for user, item, second, kind in rows]
    path.write_text("user_id,item_id,timestamp,event_type\n" + "\n".join(lines) + "\n")
    return path


def typed_world(
    folder: Path,
    users: int = 150,
    shards: int | None = None,
    types: tuple[str, ...] = ("view", "cart", "buy", "like"),
) -> PreparedDataset:
    """Four event types; each is followed by any of the ten items that belong to it."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        kind = int(rng.integers(4))
        for step in range(8):
            item, kind = 10 * kind + int(rng.integers(10)), int(rng.integers(4))
            rows.append((f"u{user}", f"i{item}", 1000 * user + step, types[kind]))
    return PreparedDataset.open(prepare_log(folder, "typed", rows, shards=shards))


def described_world(folder: Path, users: int = 60) -> PreparedDataset:
    """Ten kinds of twenty items, each kind followed by the next one; an item occurs twice or so.

    The table of items tells the kind: in words, and as a noisy vector.
    """
    rng = np.random.default_rng(1)
    rows = []
    for user in range(users):
        first = int(rng.integers(10))
        rows += [
            (f"u{user}", f"i{20 * ((first + step) % 10) + int(rng.integers(20))}", 1000 * user + step, "view")
            for step in range(8)
        ]
    kinds = np.arange(200) // 20
    vectors = 5.0 * np.eye(10)[kinds] + rng.normal(size=(200, 10))
    table = pl.DataFrame(
        {
            "item_id": [f"i{item}" for item in range(200)],
            "category": [f"kind {kind}" for kind in kinds],
            "embedding": vectors.tolist(),
        }
    )
    table.write_parquet(folder / "items.parquet")
    return PreparedDataset.open(prepare_log(folder, "described", rows, folder / "items.parquet"))

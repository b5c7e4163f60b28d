"""A simulated log of any size as Parquet files: events of int64 user_id, item_id and timestamp (seconds) over 90 days.

Users are log-normally active, items are drawn by Zipf's law, and the events stand in the order of time, as logs do; ids
are scattered numbers. A function of its settings.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

Ids = npt.NDArray[np.int64]

DAYS = 90
FIRST_S = 1_700_000_000
_SCATTER = 2_654_435_761  # odd, so that multiplying by it modulo 2^40 keeps numbers distinct


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Size and shape of a log."""

    events: int = 20_000_000
    users: int = 200_000
    items: int = 100_000
    files: int = 10
    activity_sigma: float = 1.0  # of the log of a user's activity
    zipf: float = 0.9  # an item's weight is rank to the power of minus this
    is_one_row_group: bool = False  # each file a single row group
    seed: int = 0

    @property
    def name(self) -> str:
        """Of the folder that holds it."""
        return f"{self.events}-{self.users}-{self.items}-{self.files}{'-one-group' if self.is_one_row_group else ''}"


def write_log(config: LogConfig, parent: Path) -> Path:
    """The folder of the log below `parent`; one that stands there is left as it is."""
    folder = parent / config.name
    if folder.is_dir():
        return folder
    work = folder.with_name(f".{folder.name}.tmp")
    work.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(config.seed)
    activity = np.exp(generator.normal(0.0, config.activity_sigma, config.users))
    users = _drawn(activity, config.events, generator)
    popularity = np.arange(1, config.items + 1, dtype=np.float64) ** -config.zipf
    items = _drawn(popularity, config.events, generator)
    times = FIRST_S + np.sort(generator.integers(0, DAYS * 86_400, config.events))
    columns = {"user_id": _scattered(users), "item_id": _scattered(items), "timestamp": times}
    cuts = np.linspace(0, config.events, config.files + 1).astype(int)
    for number in range(config.files):
        part = slice(cuts[number], cuts[number + 1])
        frame = pl.DataFrame({name: column[part] for name, column in columns.items()})
        rows = max(1, frame.height) if config.is_one_row_group else 250_000
        frame.write_parquet(work / f"part-{number:03}.parquet", row_group_size=rows)
    os.replace(work, folder)
    return folder


def _drawn(weights: npt.NDArray[np.float64], count: int, generator: np.random.Generator) -> Ids:
    """`count` numbers from 0, each as often as its weight says."""
    ends = np.cumsum(weights)
    drawn = np.searchsorted(ends / ends[-1], generator.random(count), side="right")
    return np.minimum(drawn, len(weights) - 1)


def _scattered(numbers: Ids) -> Ids:
    """The same numbers far apart and in no order, distinct below 2^40."""
    return (numbers + 1) * _SCATTER % 2**40

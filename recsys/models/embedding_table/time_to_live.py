"""Which rows are too old: by the time to live of their feature, in seconds since their last touch.

A touch counts from the end of its second, so that no row goes before its time, and at most a second after it."""

import torch
from torch import Tensor

from recsys.models.embedding_table.clock import Clock
from recsys.models.embedding_table.config import TableConfig
from recsys.models.embedding_table.ids import feature_numbers


class TimeToLive:
    """The times to live of a table, by its clock."""

    def __init__(self, config: TableConfig, clock: Clock) -> None:
        self._config, self._clock = config, clock

    @property
    def first_kept(self) -> list[int]:
        """From which tick on a row stays, for each time to live: while these stay no row grows too old."""
        ttls = [self._config.ttl_s, *self._config.feature_ttl_s.values()]
        return [self._first_kept(ttl_s) for ttl_s in ttls]

    def last_first_kept(self) -> int:
        """From which tick on every row stays."""
        return max(self.first_kept)

    def are_over(self, ids: Tensor, ticks: Tensor) -> Tensor:
        """(M,) bool of rows with ids (M,) int64 that were touched last at ticks (M,)."""
        are_over = ticks < self._first_kept(self._config.ttl_s)
        if self._config.feature_ttl_s:
            features = feature_numbers(ids, self._config.feature_bits)
            for number, ttl_s in self._config.feature_ttl_s.items():
                are_over = torch.where(features == number, ticks < self._first_kept(ttl_s), are_over)
        return are_over

    def _first_kept(self, ttl_s: float | None) -> int:
        return 0 if ttl_s is None else self._clock.first_tick_after(self._clock.now_s - ttl_s)

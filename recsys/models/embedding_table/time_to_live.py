"""Which rows are too old: by the time to live of their feature, in seconds since their last touch.

A touch counts from the end of its second, so that no row goes before its time, and at most a second after it."""

import math

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
    def last_seconds(self) -> list[int]:
        """Up to which second a touch is too long ago, for each time to live: while these stay no row grows too old."""
        ttls = [self._config.ttl_s, *self._config.feature_ttl_s.values()]
        return [math.floor(self._clock.now_s - ttl_s) for ttl_s in ttls if ttl_s is not None]

    def are_over(self, ids: Tensor, ticks: Tensor) -> Tensor:
        """(M,) bool of rows with ids (M,) int64 that were touched last at ticks (M,)."""
        config = self._config
        if not config.feature_ttl_s:
            return ticks < self._first_kept(config.ttl_s)
        features = feature_numbers(ids, config.feature_bits)
        are_over = ticks < self._first_kept(config.ttl_s)
        for number, ttl_s in config.feature_ttl_s.items():
            are_over = torch.where(features == number, ticks < self._first_kept(ttl_s), are_over)
        return are_over

    def _first_kept(self, ttl_s: float | None) -> int:
        return 0 if ttl_s is None else self._clock.first_tick_after(self._clock.now_s - ttl_s)

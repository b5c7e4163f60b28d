"""Which events are kept: by the number of events of their item and of their user."""

import dataclasses

import polars as pl

from recsys.errors import DataError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Thresholds. Items are filtered once, then users once; a k-core goes on until nothing changes."""

    min_item_events: int = 1
    min_user_events: int = 1
    k_core: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_item_events", "min_user_events", "k_core"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: wanted at least 1")


def keep_frequent(events: pl.DataFrame, config: FilterConfig) -> pl.DataFrame:
    """The events whose item and user have enough events, in the same order.

    Args:
        events: `user_id`, `item_id`, one row an event.
        config: thresholds.

    Raises:
        DataError: nothing is left.
    """
    kept = _at_least(events, "item_id", config.min_item_events)
    kept = _at_least(kept, "user_id", config.min_user_events)
    if config.k_core is not None:
        kept = _core(kept, config.k_core)
    if kept.is_empty():
        rules = ", ".join(f"filters.{name}={value}" for name, value in dataclasses.asdict(config).items() if value)
        raise DataError(f"no event of {events.height:,} is left by {rules}; lower them")
    return kept


def _core(events: pl.DataFrame, k: int) -> pl.DataFrame:
    """The largest part in which every item and every user has at least k events."""
    while True:
        kept = _at_least(_at_least(events, "item_id", k), "user_id", k)
        if kept.height == events.height:
            return kept
        events = kept


def _at_least(events: pl.DataFrame, column: str, minimum: int) -> pl.DataFrame:
    if minimum <= 1 or events.is_empty():
        return events
    return events.filter(pl.len().over(column) >= minimum)

"""How a log becomes a dataset: the settings of reading, policies, filtering and splitting in one."""

import dataclasses
from pathlib import Path

from recsys.features.preparation.filters import FilterConfig
from recsys.features.preparation.policies import EventConfig
from recsys.features.schema import ReadConfig
from recsys.features.splits import SplitConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How a log becomes a dataset."""

    read: ReadConfig = dataclasses.field(default_factory=ReadConfig)
    events: EventConfig = dataclasses.field(default_factory=EventConfig)
    filters: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    split: SplitConfig = dataclasses.field(default_factory=SplitConfig)
    items: Path | None = None  # a table of items: item_id, title, category, ...
    items_read: ReadConfig = dataclasses.field(default_factory=ReadConfig)
    item_category: str | None = None  # column of that table that is the category; None: the only one named like one
    item_vectors: str | None = None  # column of that table that holds vectors; None: the only one
    shards: int | None = None  # None: one up to 4 M events

    def __post_init__(self) -> None:
        if self.shards is not None and not 1 <= self.shards <= 10_000:
            raise ValueError(f"shards={self.shards}: wanted 1 to 10,000")

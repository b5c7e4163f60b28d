"""How a log is read to be described, and what counts as unusual."""

import dataclasses

from recsys.features.schema import ReadConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """How a log is read to be described, and what counts as unusual."""

    read: ReadConfig = dataclasses.field(default_factory=ReadConfig)  # of a log, as for prepare
    bot_events: int | None = None  # more are suspected; None: 10 times the 99th percentile, at least 1,000
    rows_per_chunk: int = 1_000_000  # rows in memory at a time

    def __post_init__(self) -> None:
        if self.bot_events is not None and self.bot_events < 1:
            raise ValueError(f"bot_events={self.bot_events}: wanted at least 1")
        if self.rows_per_chunk < 1:
            raise ValueError(f"rows_per_chunk={self.rows_per_chunk}: wanted at least 1")

"""Counts by value over chunks: each chunk is counted, and the counts are merged."""

import polars as pl

from recsys.features.slices import Int64s

MERGE_AT = 8


class Counts:
    """How often each value of a column came."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pending: list[pl.DataFrame] = []

    def add(self, values: pl.Series) -> None:
        """Count a chunk's values; null is one of them."""
        self._pending.append(pl.DataFrame({self._name: values}).group_by(self._name).len("events"))
        if len(self._pending) >= MERGE_AT:
            self.table()

    def table(self) -> pl.DataFrame:
        """`value` column and `events` (Int64), one row a value, in no order."""
        if not self._pending:
            return pl.DataFrame(schema={self._name: pl.Null, "events": pl.Int64})
        merged = pl.concat(self._pending).group_by(self._name).agg(pl.col("events").sum().cast(pl.Int64))
        self._pending = [merged.with_columns(pl.col("events").cast(pl.get_index_type()))]
        return merged

    def numbers(self) -> Int64s:
        """The counts alone, (distinct values,) int64."""
        numbers: Int64s = self.table()["events"].to_numpy()
        return numbers

    def mapping(self, most: int | None = None) -> dict[str, int]:
        """{value as text: events}, the most frequent first, at most `most`; null is "(none)"."""
        text = pl.col(self._name).cast(pl.String).fill_null("(none)")
        ordered = self.table().select(text, "events").sort(["events", self._name], descending=[True, False])
        return dict(ordered.head(most or ordered.height).iter_rows())

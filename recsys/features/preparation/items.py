"""The items table of a dataset: joined to its vocabulary, written with its bad rows, carried over when a day comes."""

from pathlib import Path
from typing import Any

import polars as pl

from recsys.errors import DataError
from recsys.features.preparation.item_table import join_items, read_items
from recsys.features.preparation.progress import Say
from recsys.features.preparation.steps.merge import series_of
from recsys.features.schema import ReadConfig
from recsys.features.vocabulary import Vocabulary


def write_items(work: Path, path: Path, config: ReadConfig, items: Vocabulary, tell: Say) -> dict[str, Any]:
    """Write `items.parquet` and `items_rejected.parquet`; gives back how the table fits.

    Args:
        work: the dataset's work folder.
        path: the table.
        config: how it is read.
        items: the vocabulary.
        tell: called with the counts.

    Raises:
        DataError: the table cannot be read as asked, or describes no item of the log.
    """
    read = read_items(path, config)
    joined, counts = join_items(read.table, items)
    if not counts["described"] and read.table.height and len(items):
        there, known = read.table["item_id"][0], items.decode([1])[0]
        raise DataError(
            f"{path}: describes none of the {len(items):,} items of the log: it has {there[:40]!r}, the log has "
            f"{str(known)[:40]!r}; name the column of the log's ids: items_read.columns.item_id=NAME"
        )
    joined.write_parquet(work / "items.parquet")
    read.rejected.write_parquet(work / "items_rejected.parquet")
    counts = {"lines": read.num_lines, "rejected": read.rejected.height} | counts
    tell(f"{path.name}: " + ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items()))
    for note in read.notes:
        tell(f"{path.name}: {note}")
    return counts


def carry_items(work: Path, before: Path, items: Vocabulary, counts: dict[str, Any], tell: Say) -> dict[str, Any]:
    """Write the older dataset's items table with an empty row for each new item; gives back the new counts.

    Args:
        work: the dataset's work folder.
        before: the older dataset.
        items: the vocabulary, which begins with the older one.
        counts: `items_table` of the older manifest.
        tell: called where items are not described.
    """
    table = pl.read_parquet(before / "items.parquet")
    new = series_of(items)[table.height :]
    index = pl.Series(range(table.height + 1, len(items) + 1), dtype=pl.Int64)
    rows = pl.DataFrame({"item_index": index, "item_id": new}).cast({"item_id": table.schema["item_id"]})
    pl.concat([table, rows], how="diagonal").write_parquet(work / "items.parquet")
    rejected = before / "items_rejected.parquet"
    (work / "items_rejected.parquet").write_bytes(rejected.read_bytes())
    if len(new):
        tell(f"{len(new):,} new items are not described; describe them by: --items TABLE")
    return counts | {"not_described": counts["not_described"] + len(new)}

"""Side columns of the items, as arrays that a bare machine reads: a category and a vector for each item.

    item_categories.npy  (V+1,) int32          number of the item's category from 1; 0: none
    item_vectors.npy     (V+1, width) float32  the item's vector; zeros: none

Both come from `items.parquet`. Categories are numbered by their first item; numbers given before stay.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys.errors import DataError
from recsys.features.formats.item_columns import CATEGORIES
from recsys.features.preparation.progress import Say
from recsys.features.prepare_config import PrepareConfig
from recsys.features.schema import plain_name, shown


def write_item_sides(
    work: Path, config: PrepareConfig, tell: Say, before: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write the arrays there is a column for; gives back `categories` (column, names) and `vectors` (column, width).

    Args:
        work: the dataset's work folder, with the joined `items.parquet` where there is a table of items.
        config: which columns.
        tell: called with what was taken.
        before: `side.categories` of an older manifest of this dataset.

    Raises:
        DataError: a named column is not there or of another type, or there is no table of items.
    """
    path = work / "items.parquet"
    if not path.is_file():
        for setting, column in (("item_category", config.item_category), ("item_vectors", config.item_vectors)):
            if column is not None:
                raise DataError(f"{setting}={column!r}: there is no table of items; name one: --items TABLE")
        return {"categories": None, "vectors": None}
    table = pl.read_parquet(path)
    return {
        "categories": _write_categories(work, table, config.item_category, before or {}, tell),
        "vectors": _write_vectors(work, table, config.item_vectors, tell),
    }


def _write_categories(
    work: Path, table: pl.DataFrame, asked: str | None, before: Mapping[str, Any], tell: Say
) -> dict[str, Any] | None:
    fitting = [name for name, dtype in table.schema.items() if _is_category(dtype) and name not in _KEYS]
    known = [name for name in fitting if plain_name(name) in CATEGORIES]
    name = _chosen("item_category", asked, fitting, known, "texts or integers", tell)
    if name is None:
        return None
    values = table[name]
    if isinstance(values.dtype, pl.List):
        values = values.list.first()
        tell(f"items: the first of each item's {name} is its category")
    values = values.cast(pl.String)
    values = values.set(values == "", None)
    names = list(before.get("names", ())) if before.get("column") == name else []
    seen = set(names)
    names += [value for value in values.unique(maintain_order=True) if value is not None and value not in seen]
    if not names:
        return None
    number_of = pl.DataFrame({"name": names, "number": np.arange(1, len(names) + 1, dtype=np.int32)})
    joined = values.alias("name").to_frame().join(number_of, on="name", how="left", maintain_order="left")
    numbers = joined["number"].fill_null(0).to_numpy()
    np.save(work / "item_categories.npy", np.append(np.zeros(1, np.int32), numbers.astype(np.int32)))
    tell(f"items: {len(names):,} categories from column {name}; {int((numbers == 0).sum()):,} items have none")
    return {"column": name, "names": names}


def _write_vectors(work: Path, table: pl.DataFrame, asked: str | None, tell: Say) -> dict[str, Any] | None:
    fitting = [name for name, dtype in table.schema.items() if isinstance(dtype, pl.Array)]
    name = _chosen("item_vectors", asked, fitting, fitting, "vectors", tell)
    if name is None:
        return None
    width = int(table.schema[name].shape[0])  # type: ignore[attr-defined]  # an Array
    vectors = np.zeros((table.height + 1, width), np.float32)
    has_vector = table[name].is_not_null().to_numpy()
    if has_vector.any():
        vectors[1:][has_vector] = table[name].drop_nulls().to_numpy()
    np.save(work / "item_vectors.npy", vectors)
    tell(f"items: vectors of {width:,} numbers from column {name}; {int((~has_vector).sum()):,} items have none")
    return {"column": name, "width": width}


_KEYS = ("item_index", "item_id")


def _is_category(dtype: pl.DataType) -> bool:
    return dtype == pl.String or dtype.is_integer() or dtype == pl.List(pl.String)


def _chosen(
    setting: str, asked: str | None, fitting: list[str], known: list[str], wanted: str, tell: Say
) -> str | None:
    """The column that is asked for, or else the only one that is known."""
    if asked is not None and asked not in fitting:
        found = shown(fitting) or "none"
        raise DataError(f"{setting}={asked!r}: the table of items has no such column of {wanted}; it has {found}")
    if asked is None and len(known) > 1:
        tell(f"items: none of {shown(known)} is taken; {setting}={known[0]} would take that one")
    return asked if asked is not None else known[0] if len(known) == 1 else None

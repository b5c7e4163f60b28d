"""Ranks of the targets in lists of recommended items: one code for the lists of every library."""

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.features.slices import Queries


def listed_ranks(lists: pl.DataFrame, queries: Queries) -> npt.NDArray[np.float64]:
    """(targets,) float64, as `metrics_per_query` takes them: the place in the user's list, `inf` where it is in none.

    Args:
        lists: user_id, item_id (our indices) and rank from 1 on.
        queries: histories and targets, one query a user.

    Raises:
        ValueError: an item stands twice in a list, two items share a rank, or a rank is below 1.
    """
    for columns in (["user_id", "item_id"], ["user_id", "rank"]):
        if lists.select(columns).is_duplicated().any():
            raise ValueError(f"two rows of lists have the same {' and '.join(columns)}; wanted each once")
    lowest = lists["rank"].cast(pl.Int64).to_numpy().min(initial=1)
    if lowest < 1:
        raise ValueError(f"rank={lowest} in lists; wanted ranks from 1 on")
    places = lists.select(pl.col("user_id").cast(pl.Int64), pl.col("item_id").cast(pl.Int64), "rank")
    targets = pl.DataFrame(
        {"user_id": np.repeat(queries.user, np.diff(queries.target_offsets)), "item_id": queries.target_items}
    )
    found = targets.join(places, on=["user_id", "item_id"], how="left", maintain_order="left")
    return found["rank"].cast(pl.Float64).fill_null(float("inf")).to_numpy()

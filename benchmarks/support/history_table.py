"""Events of a prepared dataset as the table that peers read: our order, our indices as ids."""

import numpy as np
import polars as pl

from recsys.features.slices import Slices, flat_items, offsets_of


def history_table(slices: Slices) -> pl.DataFrame:
    """A row an event: user_id and item_id (our indices), position within its slice, from 0 on; all int64."""
    lengths = slices.lengths
    position = np.arange(int(lengths.sum())) - np.repeat(offsets_of(lengths)[:-1], lengths)
    return pl.DataFrame(
        {"user_id": np.repeat(slices.user, lengths), "item_id": flat_items(slices), "position": position}
    )

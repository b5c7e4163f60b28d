"""What can be counted of a log once a user's rows stand together."""

import numpy as np
import polars as pl

from recsys.features.describe.shared import TOP_USERS
from recsys.features.describe.tally import Tally
from recsys.features.slices import Int64s


class UserPass:
    """What needs a user's events together."""

    def __init__(self) -> None:
        self.count = self.out_of_order = 0
        self.top: list[tuple[str, int]] = []

    def add(self, rows: pl.DataFrame, tally: Tally, order: str, latest: int) -> None:
        """Count all events of some users.

        Args:
            rows: in the order of the files.
            tally: counts them.
            order: what orders a user's events.
            latest: us, in place of times that were clamped.
        """
        if not rows.height:
            return
        key = {"time": "timestamp", "position": "position"}.get(order)
        if order == "time":
            rows = rows.with_columns(pl.col("timestamp").fill_null(latest))
        rows = rows.sort("user_id", maintain_order=True)
        is_first = (rows["user_id"] != rows["user_id"].shift(1)).fill_null(value=True).to_numpy()
        starts = np.flatnonzero(is_first)
        offsets: Int64s = np.append(starts, rows.height)
        if key:
            values = rows[key].to_numpy()
            is_back = (values[1:] < values[:-1]) & ~is_first[1:]
            self.out_of_order += len(np.unique(np.searchsorted(starts, np.flatnonzero(is_back) + 1, side="right")))
            rows = rows.sort(["user_id", key], maintain_order=True)
        self._add_top(rows["user_id"].gather(starts), np.diff(offsets))
        keys = rows[key].to_numpy() if key else None
        kinds = _numbers(rows["event_type"]) if "event_type" in rows.columns else None
        tally.add(offsets, _numbers(rows["item_id"]), keys, kinds, is_time=order == "time")

    def _add_top(self, users: pl.Series, lengths: Int64s) -> None:
        self.count += len(lengths)
        longest = np.argsort(-lengths, kind="stable")[:TOP_USERS]
        found = [(str(users[int(place)]), int(lengths[place])) for place in longest]
        self.top = sorted([*self.top, *found], key=lambda one: (-one[1], one[0]))[:TOP_USERS]


def _numbers(values: pl.Series) -> Int64s:
    """Numbers from 0 that tell the values apart; null is 0."""
    numbers: Int64s = values.rank("dense").cast(pl.Int64).fill_null(0).to_numpy()
    return numbers

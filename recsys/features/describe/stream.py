"""What can be counted of a log in the order of its rows, chunk by chunk."""

from typing import Any

import numpy as np
import polars as pl

from recsys.features.describe.counts import Counts
from recsys.features.describe.shared import DAY_US, HOUR_US
from recsys.features.readers import Chunk


class Stream:
    """What can be counted in the order of the rows."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.lines = self.good = self.events = self.clamped = self.out_of_order = self.user_runs = 0
        self.latest = 0
        self.earliest: int | None = None
        self.items, self.types, self.days = Counts("item_id"), Counts("event_type"), Counts("day")
        self.reasons, self.hours = Counts("reason"), np.zeros(24, np.int64)
        self.missing: dict[str, int] = {}
        self.weights: dict[str, float] = {}
        self._last_key: int | None = None
        self._last_user: Any = None

    def add(self, chunk: Chunk) -> None:
        rows = chunk.interactions
        self.lines, self.good = self.lines + chunk.num_lines, self.good + chunk.num_good
        self.events += rows.height
        self.reasons.add(chunk.rejected["reason"])
        for name in ("event_type", "weight", "session_id"):
            if name in rows.columns:
                self.missing[name] = self.missing.get(name, 0) + rows[name].null_count()
        if not rows.height:
            return
        self.items.add(rows["item_id"])
        self._add_runs(rows["user_id"])
        if "event_type" in rows.columns:
            self.types.add(rows["event_type"])
        if "weight" in rows.columns:
            self._add_weights(rows["weight"].drop_nulls())
        if self.order != "rows":
            self._add_keys(rows)

    def kept(self, chunk: Chunk) -> list[str]:
        """The columns that the second pass needs."""
        key = {"time": ["timestamp"], "position": ["position"]}.get(self.order, [])
        kinds = ["event_type"] if "event_type" in chunk.interactions.columns else []
        return ["user_id", "item_id", *key, *kinds]

    def _add_runs(self, users: pl.Series) -> None:
        self.user_runs += int((users != users.shift(1)).sum()) + int(users[0] != self._last_user)
        self._last_user = users[-1]

    def _add_weights(self, weights: pl.Series) -> None:
        if not weights.len():
            return
        low, high = float(weights.min()), float(weights.max())  # type: ignore[arg-type]  # Float64 without nulls
        self.weights["min"] = min(self.weights.get("min", low), low)
        self.weights["max"] = max(self.weights.get("max", high), high)
        self.weights["sum"] = self.weights.get("sum", 0.0) + float(weights.sum())
        self.weights["events"] = self.weights.get("events", 0) + weights.len()

    def _add_keys(self, rows: pl.DataFrame) -> None:
        if self.order == "position":
            return
        self.clamped += int(rows["is_clamped"].sum())
        times = rows["timestamp"].drop_nulls()
        if not times.len():
            return
        array = times.to_numpy()
        before = np.concatenate([[array[0] if self._last_key is None else self._last_key], array[:-1]])
        self.out_of_order += int(np.count_nonzero(array < before))
        self._last_key = int(array[-1])
        self.latest = max(self.latest, int(array.max()))
        self.earliest = int(array.min()) if self.earliest is None else min(self.earliest, int(array.min()))
        self.days.add(pl.Series(array // DAY_US))
        self.hours += np.bincount(array // HOUR_US % 24, minlength=24)

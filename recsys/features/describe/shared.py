"""What a log and a prepared dataset are described by alike."""

from typing import Any

import numpy as np
import polars as pl

from recsys.features.describe.config import DescribeConfig
from recsys.features.describe.shapes import lengths_shape, popularity_shape
from recsys.features.describe.tally import GAP_EDGES_S, Tally, gap_percentile
from recsys.features.slices import Int64s

HOUR_US, DAY_US = 3_600_000_000, 86_400_000_000
TOP_USERS = 10


def shared_values(
    lengths: Int64s,
    item_counts: Int64s,
    tally: Tally,
    order: str,
    config: DescribeConfig,
    top: list[tuple[str, int]],
) -> dict[str, Any]:
    """What a log and a prepared dataset have in common: lengths, popularity, repeats, ties, duplicates, bots."""
    has_keys, events = order != "rows", max(tally.events, 1)
    shape = lengths_shape(lengths)
    limit = config.bot_events or max(1000, 10 * shape["p99"])
    bots = lengths > limit
    return {
        "lengths": shape,
        "popularity": popularity_shape(item_counts),
        "repeats": {
            "events": tally.repeats,
            "share": round(tally.repeats / events, 6),
            "consecutive": tally.consecutive,
            "consecutive_share": round(tally.consecutive / events, 6),
        },
        "ties": _share_or_none(tally.tied, events, has_keys)
        | {
            "users": tally.tied_users if has_keys else None,
            "with_previous_share": round(tally.after_tie / events, 6) if has_keys else None,
        },
        "duplicates": _share_or_none(tally.duplicates, events, has_keys),
        "bots": {
            "more_events_than": int(limit),
            "users": int(bots.sum()),
            "events": int(lengths[bots].sum()),
            "share": round(float(lengths[bots].sum()) / events, 6),
            "longest": [{"user": user, "events": count} for user, count in top],
        },
    }


def time_values(
    earliest: int | None, latest: int, days: pl.DataFrame, hours: Int64s, tally: Tally
) -> dict[str, Any] | None:
    """Span, gaps and rhythm of the events; None without times.

    Args:
        earliest: us, or None.
        latest: us.
        days: `day` (days since 1970) and `events`.
        hours: (24,) int64, events by the hour of the day, UTC.
        tally: holds the gaps.
    """
    if earliest is None:
        return None
    by_day = days.sort("day")
    return {
        "first_us": earliest,
        "last_us": latest,
        "span_days": round((latest - earliest) / DAY_US, 3),
        "days_with_events": by_day.height,
        "events_by_day": [list(row) for row in by_day.iter_rows()],
        "events_by_hour": hours.tolist(),
        "gap_s": {name: gap_percentile(tally.gaps, share) for name, share in (("median", 0.5), ("p90", 0.9))},
        "gaps": {"edges_s": np.round(GAP_EDGES_S, 3).tolist(), "counts": tally.gaps.tolist()},
    }


def _share_or_none(count: int, events: int, has_keys: bool) -> dict[str, Any]:
    return {"events": count if has_keys else None, "share": round(count / events, 6) if has_keys else None}

"""A log of any format, described in two passes: chunk by chunk as it is read, then user by user."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import DataError
from recsys.features.describe.config import DescribeConfig
from recsys.features.describe.shared import shared_values, time_values
from recsys.features.describe.spool import Spool
from recsys.features.describe.stream import Stream
from recsys.features.describe.tally import Tally
from recsys.features.describe.users import UserPass
from recsys.features.readers import InteractionSource, MixedIds, open_interactions, with_string_ids

MOST_TYPES = 50
Say = Callable[[str], None]


def describe_source(path: Path, config: DescribeConfig, say: Say) -> dict[str, Any]:
    """What a log holds, as plain values; docs/cli.md lists them.

    Args:
        path: a file, a folder or a glob; see `open_interactions`.
        config: how to read it, and what counts as unusual.
        say: told of long work, one line at a time.

    Raises:
        DataError: the source cannot be read.
    """
    read = config.read
    while True:
        source = open_interactions(path, read)
        try:
            with Spool(source.num_rows_estimate) as spool:
                return _described(path, source, spool, config, say)
        except MixedIds as mixed:
            say(f"{path}: {mixed.column} holds texts and integers: read as texts")
            read = with_string_ids(read, mixed.column)


def _described(path: Path, source: InteractionSource, spool: Spool, config: DescribeConfig, say: Say) -> dict[str, Any]:
    stream = Stream(source.order)
    for chunk in source.chunks(rows=config.rows_per_chunk):
        stream.add(chunk)
        spool.add(chunk.interactions.select(stream.kept(chunk)))
        if spool.num_parts > 1:
            say(f"{path}: {stream.events:,} events read")
    if source.order == "time" and stream.events and stream.earliest is None:
        raise DataError(
            f"{path}: every time lies in the future; check the clock, or set read.time_unit and read.latest_time"
        )
    tally, users = Tally(), UserPass()
    for part in spool.parts():
        users.add(part, tally, source.order, stream.latest)
    return _values(path, source, stream, tally, users, config)


def _values(
    path: Path,
    source: InteractionSource,
    stream: Stream,
    tally: Tally,
    users: UserPass,
    config: DescribeConfig,
) -> dict[str, Any]:
    lengths = np.concatenate(tally.lengths) if tally.lengths else np.zeros(0, np.int64)
    item_counts = stream.items.numbers()
    values: dict[str, Any] = {
        "path": str(path),
        "kind": "source",
        "order": source.order,
        "time_unit": source.time_unit,
        "ids": {"users": source.user_kind, "items": source.item_kind},
        "columns": dict(source.columns),
        "files": len(source.files),
        "bytes": sum(file.bytes for file in source.files),
        "notes": list(source.notes),
        "counts": {
            "lines": stream.lines,
            "good": stream.good,
            "rejected": stream.lines - stream.good,
            "rejected_by_reason": {k: v for k, v in stream.reasons.mapping().items() if v},
            "clamped": stream.clamped,
            "events": stream.events,
            "users": users.count,
            "items": len(item_counts),
        },
        "missing": stream.missing,
        "event_types": stream.types.mapping(MOST_TYPES),
        "weights": _weights(stream.weights),
    }
    return (
        values
        | shared_values(lengths, item_counts, tally, source.order, config, users.top)
        | {
            "time": time_values(stream.earliest, stream.latest, stream.days.table(), stream.hours, tally),
            "order_problems": {
                "rows_out_of_time_order": stream.out_of_order if source.order == "time" else None,
                "users_out_of_order": users.out_of_order if source.order != "rows" else None,
                "users_in_blocks": stream.user_runs == users.count,
            },
        }
    )


def _weights(found: dict[str, float]) -> dict[str, float] | None:
    if not found:
        return None
    return {"min": found["min"], "max": found["max"], "mean": round(found["sum"] / found["events"], 6)}

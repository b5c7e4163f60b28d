"""What the parts of a split hold, counted shard by shard."""

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Int64s, Shard, ranges

COUNTED = ("users", "cold_users", "targets", "targets_never_trained")


def describe_splits(dataset: PreparedDataset) -> dict[str, dict[str, Any]]:
    """Events and users of training; users asked, cold users and targets of validation and test.

    Raises:
        DataError: no user has a history and a test event.
    """
    is_trained = dataset.train_counts() > 0
    train: Counter[str] = Counter(events=0, users=0)
    parts = {split: Counter(dict.fromkeys(COUNTED, 0)) for split in ("valid", "test")}
    for shard in dataset.shards:
        train.update(events=int(shard.train_end.sum()), users=int(np.count_nonzero(shard.train_end)))
        is_next = dataset.target == "next"
        parts["valid"].update(_questions(shard, shard.train_end, shard.valid_end, is_next, is_trained))
        parts["test"].update(_questions(shard, shard.valid_end, np.diff(shard.offsets), is_next, is_trained))
    if not parts["test"]["users"]:
        raise DataError(
            f"split.protocol={dataset.protocol}: no user has a history and a test event; too few events a user"
        )
    return {"train": dict(train)} | {split: dict(counts) for split, counts in parts.items()}


def _questions(
    shard: Shard, begin: Int64s, end: Int64s, is_next: bool, is_trained: npt.NDArray[np.bool_]
) -> dict[str, int]:
    """Counts of the questions whose targets are the events [begin, end) of each user, or the first of them."""
    has_target, has_history = end > begin, begin > 0
    asked = has_target & has_history
    first = shard.offsets[:-1][asked] + begin[asked]
    last = first + 1 if is_next else shard.offsets[:-1][asked] + end[asked]
    targets = shard.items[ranges(first, last)]
    return {
        "users": int(np.count_nonzero(asked)),
        "cold_users": int(np.count_nonzero(has_target & ~has_history)),
        "targets": len(targets),
        "targets_never_trained": int(np.count_nonzero(~is_trained[targets])),
    }

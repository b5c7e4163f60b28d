"""How much of each split's future a declared leaky protocol trains on, and how far its targets hang on ties."""

from typing import Any

import numpy as np

from recsys.features.dataset import PreparedDataset, Split
from recsys.features.leakage.blocks import Block, blocks
from recsys.features.slices import Int64s


def exposure(dataset: PreparedDataset, split: Split) -> dict[str, Any]:
    """Shares of the training part and of the questions of a split, where times are known.

    `training_share_after_a_target`: training events later than at least one other user's first target;
    `mean_training_share_after_target`: training events later than an average first target; `tied_targets`: share of
    questions whose first target has the time of the history's last event, so that the order of the file or a policy
    decides which of them is the target; `duplicated_targets`: of those, share of questions whose target is that very
    item again.
    """
    asked, num_tied, num_duplicated = _questions(dataset, split)
    num_train = sum(int(shard.train_end.sum()) for shard in dataset.shards)
    report: dict[str, Any] = {"queries": len(asked)}
    if not len(asked) or not num_train:
        return report
    asked.sort()
    is_after = later = 0
    for block in blocks(dataset):
        assert block.times is not None
        # Sorted needles find their places ten times faster.
        times = np.sort(block.times[block.parts() == 0])
        # A user's own training events are never later than the user's target.
        is_after += len(times) - int(np.searchsorted(times, asked[0], side="right"))
        later += int(np.searchsorted(asked, times, side="left").sum())
    return report | {
        "training_share_after_a_target": round(is_after / num_train, 6),
        "mean_training_share_after_target": round(later / num_train / len(asked), 6),
        "tied_targets": round(num_tied / len(asked), 6),
        "duplicated_targets": round(num_duplicated / len(asked), 6),
    }


def _questions(dataset: PreparedDataset, split: Split) -> tuple[Int64s, int, int]:
    """Times of the first targets, (N,) int64 us, and how many of them are tied with, and equal to, the event before."""
    asked, num_tied, num_duplicated = [], 0, 0
    for block in blocks(dataset):
        assert block.times is not None
        target = _first_targets(block, split)
        is_tied = block.times[target] == block.times[target - 1]
        is_same = is_tied & (block.items[target] == block.items[target - 1])
        asked.append(block.times[target])
        num_tied, num_duplicated = num_tied + int(is_tied.sum()), num_duplicated + int(is_same.sum())
    return np.concatenate(asked) if asked else np.zeros(0, np.int64), num_tied, num_duplicated


def _first_targets(block: Block, split: Split) -> Int64s:
    """Places of the first targets of users with a history, in the block."""
    begin = block.train_end if split == "valid" else block.valid_end
    end = block.valid_end if split == "valid" else block.lengths
    keep = (end > begin) & (begin > 0)
    places: Int64s = (block.offsets[:-1] + begin)[keep]
    return places

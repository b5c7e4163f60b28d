"""How much of each split's future a declared leaky protocol trains on, and how far its targets hang on ties."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from recsys.features.dataset import PreparedDataset, Split
from recsys.features.leakage.blocks import Block, blocks
from recsys.features.slices import Int64s


def exposure(dataset: PreparedDataset, splits: Sequence[Split] = ("valid", "test")) -> dict[str, dict[str, Any]]:
    """Of each split, shares of the training part and of the split's questions; times must be known.

    `training_share_after_a_target`: training events later than at least one other user's first target;
    `mean_training_share_after_target`: training events later than an average first target; `tied_targets`: share of
    questions whose first target has the time of the history's last event, so that the order of the file or a policy
    decides which of them is the target; `duplicated_targets`: of those, share of questions whose target is that very
    item again.
    """
    questions = [_questions(dataset, split) for split in splits]
    num_train = sum(int(shard.train_end.sum()) for shard in dataset.shards)
    asked = [each for each in questions if len(each.times) and num_train]
    if asked:
        for block in blocks(dataset):
            assert block.times is not None
            # Sorted needles find their places ten times faster.
            times = np.sort(block.times[block.parts() == 0])
            for each in asked:
                # A user's own training events are never later than the user's target.
                each.after_any += len(times) - int(np.searchsorted(times, each.times[0], side="right"))
                each.after += int(np.searchsorted(each.times, times, side="left").sum())
    return {split: each.report(num_train) for split, each in zip(splits, questions, strict=True)}


@dataclasses.dataclass
class _Questions:
    """The questions of one split, and what training sees of their future."""

    times: Int64s  # (N,) of the first targets, us, ascending
    tied: int  # with the event before
    duplicated: int  # of the tied: the same item again
    after_any: int = 0  # training events after at least one target
    after: int = 0  # pairs of a training event and an earlier target

    def report(self, num_train: int) -> dict[str, Any]:
        """Shares, as plain values."""
        count = len(self.times)
        if not count or not num_train:
            return {"queries": count}
        return {
            "queries": count,
            "training_share_after_a_target": round(self.after_any / num_train, 6),
            "mean_training_share_after_target": round(self.after / num_train / count, 6),
            "tied_targets": round(self.tied / count, 6),
            "duplicated_targets": round(self.duplicated / count, 6),
        }


def _questions(dataset: PreparedDataset, split: Split) -> _Questions:
    asked, num_tied, num_duplicated = [], 0, 0
    for block in blocks(dataset):
        assert block.times is not None
        target = _first_targets(block, split)
        is_tied = block.times[target] == block.times[target - 1]
        is_same = is_tied & (block.items[target] == block.items[target - 1])
        asked.append(block.times[target])
        num_tied, num_duplicated = num_tied + int(is_tied.sum()), num_duplicated + int(is_same.sum())
    return _Questions(np.sort(np.concatenate(asked)) if asked else np.zeros(0, np.int64), num_tied, num_duplicated)


def _first_targets(block: Block, split: Split) -> Int64s:
    """Places of the first targets of users with a history, in the block."""
    begin = block.train_end if split == "valid" else block.valid_end
    end = block.valid_end if split == "valid" else block.lengths
    keep = (end > begin) & (begin > 0)
    places: Int64s = (block.offsets[:-1] + begin)[keep]
    return places

"""A prepared dataset a million events at a time, so that a check needs little memory whatever the dataset's size."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from recsys.features.dataset import PreparedDataset
from recsys.features.slices import Int32s, Int64s

EVENTS_PER_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Block:
    """Some rows of one shard, copied out of the map.

    Attributes:
        shard:     number of the shard.
        users:     (n,) int64, user index.
        offsets:   (n+1,) int64, where each user's events start, from 0.
        items:     (E,) int32.
        times:     (E,) int64 us, or None.
        train_end: (n,) int64, counted from the user's first event.
        valid_end: (n,) int64, likewise.
    """

    shard: int
    users: Int64s
    offsets: Int64s
    items: Int32s
    times: Int64s | None
    train_end: Int64s
    valid_end: Int64s

    @property
    def lengths(self) -> Int64s:
        """Events of each user, (n,) int64."""
        return np.diff(self.offsets)

    def owner(self, event: int) -> int:
        """User index of one event of the block."""
        return int(self.users[np.searchsorted(self.offsets, event, side="right") - 1])

    def parts(self) -> npt.NDArray[np.int8]:
        """The part of each event, (E,) int8: 0 training, 1 validation, 2 test."""
        steps = np.zeros(len(self.items) + 1, np.int8)
        starts, ends = self.offsets[:-1], self.offsets[1:]
        for cut in (starts + self.train_end, starts + self.valid_end):
            inside = cut < ends
            # Cuts inside of their users are distinct places, and so are the ends of these users.
            steps[cut[inside]] += 1
            steps[ends[inside]] -= 1
        parts: npt.NDArray[np.int8] = np.cumsum(steps[:-1], dtype=np.int8)
        return parts


def blocks(dataset: PreparedDataset, events: int = EVENTS_PER_BLOCK) -> Iterator[Block]:
    """Whole users in the order of shards and rows, about `events` events at a time; a longer user is one block."""
    for number, shard in enumerate(dataset.shards):
        row, num_rows = 0, len(shard.users)
        while row < num_rows:
            end = int(np.searchsorted(shard.offsets, shard.offsets[row] + events, side="right")) - 1
            end = min(max(end, row + 1), row + events, num_rows)
            first, last = int(shard.offsets[row]), int(shard.offsets[end])
            yield Block(
                number,
                np.asarray(shard.users[row:end]),
                shard.offsets[row : end + 1] - first,
                np.asarray(shard.items[first:last]),
                None if shard.times is None else np.asarray(shard.times[first:last]),
                np.asarray(shard.train_end[row:end]),
                np.asarray(shard.valid_end[row:end]),
            )
            row = end

"""Runs of events inside memory-mapped shards: histories, training parts, and the questions asked of them.

Needs numpy and the standard library alone.
"""

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Shard:
    """Some users' events, flat.

    Attributes:
        users:     (n,) int64, user index.
        offsets:   (n+1,) int64, where each user's events start.
        items:     (E,) int32, item index, oldest first within a user.
        times:     (E,) int64 us UTC, or None where the order is not by time.
        train_end: (n,) int64, counted from the user's first event.
        valid_end: (n,) int64, likewise.
        event_types: (E,) int32, number of each event's type from 1, 0 where it has none; None without types.
    """

    users: Int64s
    offsets: Int64s
    items: Int32s
    times: Int64s | None
    train_end: Int64s
    valid_end: Int64s
    event_types: Int32s | None = None


@dataclasses.dataclass(frozen=True)
class Slices:
    """Runs of events, each within one user: offsets into the flat arrays of a shard.

    Attributes:
        shard: (N,) int32, number of the shard.
        start: (N,) int64, first event.
        end:   (N,) int64, one past the last event.
        user:  (N,) int64, user index.
    """

    shards: list[Shard] = dataclasses.field(repr=False)
    shard: Int32s
    start: Int64s
    end: Int64s
    user: Int64s

    def __len__(self) -> int:
        return len(self.start)

    @functools.cached_property
    def lengths(self) -> Int64s:
        """Events in each slice, (N,) int64."""
        return self.end - self.start

    def gather(self, i: int) -> tuple[Int32s, Int64s | None]:
        """Items and times (us, or None) of slice i, oldest first; views, not copies."""
        shard, start, end = self.shards[self.shard[i]], self.start[i], self.end[i]
        return shard.items[start:end], None if shard.times is None else shard.times[start:end]


@dataclasses.dataclass(frozen=True)
class Queries(Slices):
    """Histories with what followed them.

    Attributes:
        target_start: (N,) int64, first target, an offset into the same shard's flat arrays.
        target_end:   (N,) int64, one past the last target.
        query_time:   (N,) int64 us, when the question is asked, or None where the order is not by time.
        num_cold:     users left out because they have targets and no history.
    """

    target_start: Int64s
    target_end: Int64s
    query_time: Int64s | None
    num_cold: int

    def targets(self, i: int) -> Int64s:
        """Distinct items that followed history i, in the order of their first event, (targets,) int64."""
        return self.target_items[self.target_offsets[i] : self.target_offsets[i + 1]]

    @property
    def target_offsets(self) -> Int64s:
        """(N+1,) int64, where each query's targets start in `target_items`."""
        return self._targets[0]

    @property
    def target_items(self) -> Int64s:
        """Targets of all queries, flat, (sum,) int64; an item that follows twice is one target."""
        return self._targets[1]

    @functools.cached_property
    def _targets(self) -> tuple[Int64s, Int64s]:
        lengths = self.target_end - self.target_start
        flat = np.zeros(int(lengths.sum()), np.int64)
        position, shards = ranges(self.target_start, self.target_end), np.repeat(self.shard, lengths)
        for number, shard in enumerate(self.shards):
            mine = shards == number
            flat[mine] = shard.items[position[mine]]
        if len(flat) == len(lengths):
            return offsets_of(lengths), flat
        query = np.repeat(np.arange(len(lengths)), lengths)
        first = np.sort(np.unique(query * (flat.max() + 1) + flat, return_index=True)[1])
        return offsets_of(np.bincount(query[first], minlength=len(lengths))), flat[first]


def offsets_of(lengths: Int64s) -> Int64s:
    """0 and the running sums of the lengths, (n+1,) int64."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ranges(start: Int64s, end: Int64s) -> Int64s:
    """start[0], start[0]+1, ..., end[0]-1, start[1], ... as one array, (sum,) int64."""
    lengths = end - start
    offsets = offsets_of(lengths)
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start, lengths)


def flat_items(slices: Slices) -> Int64s:
    """Items of all slices one after another, (sum of lengths,) int64."""
    items = np.empty(int(slices.lengths.sum()), dtype=np.int64)
    position, shard = ranges(slices.start, slices.end), np.repeat(slices.shard, slices.lengths)
    for number, part in enumerate(slices.shards):
        mine = shard == number
        items[mine] = part.items[position[mine]]
    return items

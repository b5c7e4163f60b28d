"""Where each user's events are cut into training, validation and test part. Pure functions over sorted flat arrays.

[0, train_end) trains    [train_end, valid_end) validates    [valid_end, length) tests
"""

import dataclasses
import hashlib

import numpy as np

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset, Protocol, Target
from recsys.features.slices import Int64s, offsets_of

# Shares are decimal fractions: 0.29 * 100 is 28.999999999999996.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How events are split."""

    protocol: Protocol | None = None  # None: time where the times are real, else loo
    valid_share: float = 0.1  # of all events (time) or of each user's (ratio)
    test_share: float = 0.1
    target: Target | None = None  # None: all for time, else next

    def __post_init__(self) -> None:
        if not 0 <= self.valid_share < 1:
            raise ValueError(f"valid_share={self.valid_share}: wanted a share in 0..1, below 1")
        if not 0 < self.test_share < 1 or self.valid_share + self.test_share >= 1:
            shares = f"test_share={self.test_share} with valid_share={self.valid_share}"
            raise ValueError(f"{shares}: wanted test_share above 0 and a sum below 1")


def leave_one_out(offsets: Int64s, *, with_valid: bool = True) -> tuple[Int64s, Int64s]:
    """The last event tests and the one before it validates.

    Args:
        offsets: (n+1,) int64, where each user's events start.
        with_valid: False: only the last event is held out.

    Returns:
        train_end and valid_end, (n,) int64 each. Users with too few events (3, or 2 without validation) only train.
    """
    lengths = np.diff(offsets)
    held_out = 2 if with_valid else 1
    is_long = lengths > held_out
    return np.where(is_long, lengths - held_out, lengths), np.where(is_long, lengths - 1, lengths)


def ratio(offsets: Int64s, valid_share: float, test_share: float) -> tuple[Int64s, Int64s]:
    """Each user's last share tests and the share before it validates: rounded down, at least one where it is not 0.

    Args:
        offsets: (n+1,) int64, where each user's events start.
        valid_share: of the user's events, in [0, 1).
        test_share: likewise.

    Returns:
        train_end and valid_end, (n,) int64 each. Users with fewer than 3 events only train; nobody's training part is
        empty.
    """
    lengths = np.diff(offsets)
    num_test = np.minimum(_share(lengths, test_share), lengths - 1 - bool(valid_share))
    num_valid = np.minimum(_share(lengths, valid_share), lengths - 1 - num_test)
    is_long = lengths >= 3
    valid_end = np.where(is_long, lengths - num_test, lengths)
    return np.where(is_long, valid_end - num_valid, lengths), valid_end


def time_cuts(times: Int64s, valid_share: float, test_share: float) -> tuple[int, int]:
    """The times at which validation and test part begin.

    All events of one timestamp fall on the same side of a cut: the later one.

    Args:
        times: (E,) int64 us of all events, in ascending order.
        valid_share: of the events.
        test_share: of the events.

    Raises:
        DataError: a part would be empty: too few distinct times.
    """
    first_valid, first_test = cut_places(len(times), valid_share, test_share)
    cuts = (int(times[first_valid]), int(times[first_test]))
    is_empty = cuts[0] == times[0] or (valid_share > 0 and cuts[0] == cuts[1])
    if is_empty:
        distinct = len(np.unique(times))
        raise DataError(
            f"split.protocol=time: {len(times):,} events with {distinct:,} distinct times leave a part empty; "
            "use split.protocol=loo or ratio, or other shares"
        )
    return cuts


def by_time(offsets: Int64s, times: Int64s, cuts: tuple[int, int]) -> tuple[Int64s, Int64s]:
    """Events before the first cut train, those before the second validate, the others test.

    Args:
        offsets: (n+1,) int64, where each user's events start.
        times: (E,) int64 us, ascending within a user.
        cuts: as `time_cuts` gives them.

    Returns:
        train_end and valid_end, (n,) int64 each; a user may have no training part.
    """
    train_end, valid_end = (_count_before(offsets, times, cut) for cut in cuts)
    return train_end, valid_end


def cut_places(num_events: int, valid_share: float, test_share: float) -> tuple[int, int]:
    """The places, in the ascending times of all events, of those that are the cuts of a split by time."""
    first_valid = int(num_events * (1 - valid_share - test_share) + ROUNDING)
    first_test = int(num_events * (1 - test_share) + ROUNDING)
    return first_valid, min(first_test, num_events - 1)


def split_hash(dataset: PreparedDataset) -> str:
    """First 12 hex digits of the sha256 over protocol, target rule, `cuts_us` and every user's cuts."""
    digest = hashlib.sha256(f"{dataset.protocol}/{dataset.target}/{dataset.manifest['cuts_us']}".encode())
    for shard in dataset.shards:
        digest.update(np.ascontiguousarray(shard.train_end).data)
        digest.update(np.ascontiguousarray(shard.valid_end).data)
    return digest.hexdigest()[:12]


def _share(lengths: Int64s, share: float) -> Int64s:
    whole = np.floor(lengths * share + ROUNDING).astype(np.int64)
    return np.maximum(whole, int(share > 0))


def _count_before(offsets: Int64s, times: Int64s, cut: int) -> Int64s:
    before = offsets_of((times < cut).astype(np.int64))
    return before[offsets[1:]] - before[offsets[:-1]]

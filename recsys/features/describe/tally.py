"""Counts over users' events that need the events of one user together: repeats, ties, duplicates, gaps.

Users come in blocks of any size; the sums are the same for any blocks.
"""

import numpy as np
import numpy.typing as npt

from recsys.features.slices import Int64s

# Gaps between two events of a user, in seconds: twenty bins a decade up to 30 years.
GAP_EDGES_S = np.concatenate([[0.0], 10 ** (np.arange(181) / 20)])
Booleans = npt.NDArray[np.bool_]


class Tally:
    """Counts of all events seen so far.

    Attributes:
        events: events seen.
        repeats: events whose user had that item before.
        consecutive: events whose item is that of the user's event before.
        tied: events that share their order key (time or position) with another event of the user.
        after_tie: events whose order key is that of the user's event before.
        tied_users: users with a tied event.
        duplicates: events with the user, item and order key (and event type) of an earlier one.
        lengths: events of each user, one array a block.
        gaps: (len(GAP_EDGES_S),) int64, how many gaps between two events of a user fall into each bin; the first bin
            holds gaps of 0 s, and those beyond the last edge fall into the last.
    """

    def __init__(self) -> None:
        self.events = self.repeats = self.consecutive = self.tied = self.after_tie = self.tied_users = 0
        self.duplicates = 0
        self.lengths: list[Int64s] = []
        self.gaps = np.zeros(len(GAP_EDGES_S), np.int64)

    def add(self, offsets: Int64s, items: Int64s, keys: Int64s | None, kinds: Int64s | None, *, is_time: bool) -> None:
        """Count some whole users.

        Args:
            offsets: (n+1,) int64, where each user's events start.
            items: (E,) int64 from 0, any numbers that tell items apart; in each user's order.
            keys: (E,) int64, ascending within a user: times in us or positions; None: the order is that of the rows.
            kinds: (E,) int64, numbers that tell event types apart, or None.
            is_time: whether keys are times.
        """
        lengths = np.diff(offsets)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        is_same_user = owner[1:] == owner[:-1]
        self.events += len(items)
        self.lengths.append(lengths)
        self.consecutive += int(np.count_nonzero((items[1:] == items[:-1]) & is_same_user))
        self.repeats += len(items) - _distinct(owner, items)
        if keys is None:
            return
        if is_time:
            self._add_gaps(np.diff(keys)[is_same_user])
        is_tied = np.zeros(len(items), bool)
        is_equal = (keys[1:] == keys[:-1]) & is_same_user
        self.after_tie += int(np.count_nonzero(is_equal))
        is_tied[1:] |= is_equal
        is_tied[:-1] |= is_equal
        self.tied += int(is_tied.sum())
        self.tied_users += len(np.unique(owner[is_tied]))
        self.duplicates += _duplicates(owner, items, keys, kinds, is_tied)

    def _add_gaps(self, gaps_us: Int64s) -> None:
        seconds = gaps_us / 1e6
        place = np.where(seconds <= 0, 0, np.searchsorted(GAP_EDGES_S, seconds, side="right") - 1)
        place[(seconds > 0) & (place == 0)] = 1
        self.gaps += np.bincount(place, minlength=len(self.gaps))


def gap_percentile(gaps: Int64s, share: float) -> float | None:
    """The gap in seconds, to about 6 %, below which this share of the gaps lies; None without gaps."""
    total = int(gaps.sum())
    if not total:
        return None
    place = int(np.searchsorted(np.cumsum(gaps), share * total))
    if place == 0:
        return 0.0
    return float(f"{np.sqrt(GAP_EDGES_S[place] * GAP_EDGES_S[min(place + 1, len(GAP_EDGES_S) - 1)]):.3g}")


def _distinct(owner: Int64s, items: Int64s) -> int:
    """Number of different pairs."""
    if not len(items):
        return 0
    pairs = np.sort(owner * (int(items.max()) + 1) + items)
    return 1 + int(np.count_nonzero(np.diff(pairs)))


def _duplicates(owner: Int64s, items: Int64s, keys: Int64s, kinds: Int64s | None, is_tied: Booleans) -> int:
    """Duplicates share their key, so only tied events can be some."""
    if not is_tied.any():
        return 0
    columns = [owner[is_tied], keys[is_tied], items[is_tied]]
    if kinds is not None:
        columns.append(kinds[is_tied])
    order = np.lexsort(columns[::-1])
    is_same = np.ones(len(order) - 1, bool)
    for column in columns:
        sorted_column = column[order]
        is_same &= sorted_column[1:] == sorted_column[:-1]
    return int(is_same.sum())

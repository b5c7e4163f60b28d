"""Rows by 64-bit id in a table that never grows: a new id takes the row that was used least when no row is left.

The table is cut into buckets of equally many rows, and an id belongs to the bucket `id mod buckets`, read as an
unsigned number. A bucket gives rows to its own ids alone, so that what happens in it does not depend on which process
holds it, or beside which others. The last row of a bucket is shared by those of its ids that have no row of their own.

All that is known stands in three tensors of one element a row, which a checkpoint can hold and cut as it likes.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from recsys.kernels.hash_table.index import new_index
from recsys.kernels.row_scan import lowest

Eviction = Literal["lru", "lfu", "none"]
EVICTIONS: tuple[str, ...] = get_args(Eviction)

_SHARE = 8  # a queue or pool holds one in so many rows of its bucket


@dataclass(frozen=True)
class RowState:
    """What a table knows of its rows, (rows,) int64 each.

    Attributes:
        ids: 0 where a row is free, and for shared rows.
        last_use: number of the call that last asked for the id.
        counts: how often the id was asked for since it came in; 0 where the row is free. Of a shared row: how often an
            id found no room.
    """

    ids: Tensor
    last_use: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, num_rows: int, device: torch.device) -> "RowState":
        """Of a table in which no row is taken."""
        return cls(*(torch.zeros(num_rows, dtype=torch.int64, device=device) for _ in range(3)))

    def part(self, start: int, stop: int) -> "RowState":
        """A copy of these rows."""
        return RowState(*(tensor[start:stop].clone() for tensor in (self.ids, self.last_use, self.counts)))


class BoundedRows:
    """Rows by id. `state` is read at once, and written to in place.

    Args:
        state: what is known of the rows.
        buckets: (first, last + 1, how many there are in all); the rows are those of the buckets from `first` to `last`.
        eviction: lru: the id whose last use is longest ago makes room, lfu: the one that was asked for least often, and
            of those the one whose last use is longest ago; none: nobody does, and a new id has to share a row. Ids that
            stand in the same call stay.

    Raises:
        ValueError: the rows are not so many equal buckets, or the state is not one that a table can have.
    """

    def __init__(self, state: RowState, buckets: tuple[int, int, int], eviction: Eviction) -> None:
        self._state, self._eviction = state, eviction
        self._first, last, self._buckets = buckets
        self._num = last - self._first
        self._size = rows_of_bucket(len(state.ids), self._num)
        self._device = state.ids.device
        self._used = self._checked_used()
        self._queues: dict[int, _Queue] = {}
        self._pools: dict[int, _Pool] = {}
        taken = self._is_taken().nonzero().squeeze(1)
        ids = state.ids[taken]
        self._index = new_index(len(ids), self._device)
        found, firsts = self._index.claim(ids)
        self._index.settle(ids, found, firsts, taken[firsts])
        if len(firsts) < len(ids):
            again = int((found != taken).nonzero()[0])
            raise ValueError(
                f"id {int(ids[again])} has the rows {int(found[again])} and {int(taken[again])}; wanted one"
            )

    def __len__(self) -> int:
        """How many ids there are."""
        return int(self._used.sum())

    @property
    def room(self) -> int:
        """How many more ids have room before one has to go."""
        return self._num * (self._size - 1) - len(self)

    @property
    def loads(self) -> Tensor:
        """(buckets,) float64, the share of each bucket's rows that is taken."""
        return self._used.double() / (self._size - 1)

    def find(self, ids: Tensor) -> Tensor:
        """(N,) rows of `ids` (N,) int64, a shared one for unknown ids; nothing changes."""
        rows = self._index.find(ids)
        unknown = (rows < 0).nonzero().squeeze(1)
        if len(unknown):
            rows[unknown] = self._shared_rows(ids[unknown])
        return rows

    def find_or_insert(self, ids: Tensor, call: int) -> tuple[Tensor, Tensor]:
        """Rows of ids, and the rows that changed hands.

        Args:
            ids: (N,) int64, any, each any number of times.
            call: number of this call, greater than that of the one before, or the same; ids that were asked for in a
                call of this number stay.

        Returns:
            (N,) int64 rows; a shared one where a new id found no room, which its `counts` count. (M,) int64 ascending,
            the rows that another id had before.
        """
        state = self._state
        found, firsts = self._index.claim(ids)
        known = found if len(firsts) == 0 else found[found >= 0]
        state.last_use.index_fill_(0, known, call)
        changed = state.ids.new_empty(0)
        if len(firsts):
            new = ids[firsts]
            rows, changed = self._make_room(self._bucket_of(new), call)
            self._index.settle(ids, found, firsts, rows)
            if bool((rows < 0).any()):
                new, rows = new[rows >= 0], rows[rows >= 0]
                homeless = (found < 0).nonzero().squeeze(1)
                found[homeless] = self._shared_rows(ids[homeless])
            state.ids.index_copy_(0, rows, new)
            state.last_use.index_fill_(0, rows, call)
            state.counts.index_fill_(0, rows, 0)
        state.counts.scatter_add_(0, found, torch.ones_like(found))
        return found, changed

    def _make_room(self, bucket: Tensor, call: int) -> tuple[Tensor, Tensor]:
        """(M,) rows for new ids of these buckets, -1 for want of room; and the rows that others had to leave."""
        wanted = torch.bincount(bucket, minlength=self._num)
        room = self._size - 1 - self._used
        place = _places_within(bucket, wanted)
        start = bucket * self._size
        rows = torch.where(place < room[bucket], start + self._used[bucket] + place, -1)
        self._used += torch.minimum(wanted, room)
        full = (wanted > room).nonzero().squeeze(1).tolist()
        if not full or self._eviction == "none":
            return rows, rows.new_empty(0)
        self._state.last_use.index_fill_(0, rows[rows >= 0], call)  # so that they are not thrown out at once
        left = []
        for number in full:
            victims = self._victims(number, int(wanted[number] - room[number]), call)
            heirs = ((bucket == number) & (rows < 0)).nonzero().squeeze(1)
            rows[heirs[: len(victims)]] = victims
            left.append(victims)
        changed = torch.cat(left).sort().values
        self._index.erase(self._state.ids[changed])
        return rows, changed

    def _victims(self, bucket: int, count: int, call: int) -> Tensor:
        """At most so many rows of a full bucket, the one to go first before the others."""
        start = bucket * self._size
        part = slice(start, start + self._size - 1)
        last_use, counts = self._state.last_use[part], self._state.counts[part]
        if self._eviction == "lru":
            queue = self._queues.setdefault(bucket, _Queue(last_use.new_empty(0), last_use.new_empty(0)))
            return start + queue.take(count, last_use, call)
        pool = self._pools.setdefault(bucket, _Pool(last_use.new_empty(0)))
        return start + pool.take(count, counts, last_use, call)

    def _bucket_of(self, ids: Tensor) -> Tensor:
        return bucket_of(ids, self._buckets) - self._first

    def _shared_rows(self, ids: Tensor) -> Tensor:
        return (self._bucket_of(ids) + 1) * self._size - 1

    def _is_taken(self) -> Tensor:
        is_taken = self._state.counts > 0
        is_taken[self._size - 1 :: self._size] = False
        return is_taken

    def _checked_used(self) -> Tensor:
        """(buckets,) how many rows of each are taken."""
        state = self._state
        if bool((state.counts < 0).any()):
            row = int((state.counts < 0).nonzero()[0])
            raise ValueError(f"row {row} was asked for {int(state.counts[row])} times; wanted 0 or more")
        if bool((state.last_use < 0).any()):
            row = int((state.last_use < 0).nonzero()[0])
            raise ValueError(f"row {row} was last used in call {int(state.last_use[row])}; wanted 0 or more")
        is_taken = self._is_taken()
        by_bucket = is_taken.view(self._num, self._size)
        used = by_bucket.sum(1)
        gaps = by_bucket != (torch.arange(self._size, device=self._device) < used[:, None])
        if bool(gaps.any()):
            bucket, row = gaps.nonzero()[0].tolist()
            raise ValueError(f"row {bucket * self._size + row} is free before one that is taken; wanted no gaps")
        nobodys = ((state.ids != 0) | (state.last_use != 0)) & ~is_taken
        if bool(nobodys.any()):
            row = int(nobodys.nonzero()[0])
            raise ValueError(
                f"row {row} is free or shared, but has the id {int(state.ids[row])} and was last used in call "
                f"{int(state.last_use[row])}; wanted 0 for both"
            )
        rows = is_taken.nonzero().squeeze(1)
        strange = (self._bucket_of(state.ids[rows]) != rows // self._size).nonzero()
        if len(strange):
            row = int(rows[strange[0]])
            held = state.ids[row]
            raise ValueError(
                f"row {row} of bucket {self._first + row // self._size} holds the id {int(held)} of bucket "
                f"{int(bucket_of(held, self._buckets))}; wanted buckets={self._buckets} as when it was saved"
            )
        return used


@dataclass
class _Queue:
    """Rows of an lru bucket, longest unused first, as it stood when the queue was made.

    A row whose last use is still the same goes before all that were used since, so the order holds until the end of the
    queue; a row that was used since is passed over.
    """

    rows: Tensor
    last_use: Tensor

    def take(self, count: int, last_use: Tensor, call: int) -> Tensor:
        """At most so many rows that this call does not use; they count as used from here on."""
        taken = []
        while count > 0:
            if len(self.rows) == 0:
                rows = (last_use < call).nonzero().squeeze(1)
                if len(rows) == 0:
                    break
                self.rows = _lowest(rows, last_use[rows], max(count, len(last_use) // _SHARE))
                self.last_use = last_use[self.rows]
            part = slice(0, 2 * count)
            places = (last_use[self.rows[part]] == self.last_use[part]).nonzero().squeeze(1)[:count]
            end = int(places[-1]) + 1 if len(places) == count else 2 * count
            taken.append(self.rows[places])
            last_use[taken[-1]] = call
            self.rows, self.last_use = self.rows[end:], self.last_use[end:]
            count -= len(places)
        return torch.cat(taken) if taken else last_use.new_empty(0, dtype=torch.int64)


@dataclass
class _Pool:
    """Rows of a full lfu bucket that were the rarest when the pool was made, and those of ids that came in since.

    The two are the same rows, as one who comes takes the row of one who goes. All others were no rarer than `limit`,
    and uses only add up, so whoever is rarer than that is in the pool.
    """

    rows: Tensor
    limit: tuple[int, int, int] | None = None  # count, last use and row of the rarest outside

    def take(self, count: int, counts: Tensor, last_use: Tensor, call: int) -> Tensor:
        """At most so many rows that this call does not use."""
        for size in (0, max(4 * count, len(counts) // _SHARE), len(counts)):
            if size:
                self._fill(size, counts, last_use)
            rows = self.rows[last_use[self.rows] < call]
            rarest = _rarest(rows, counts, last_use, count)
            if len(rarest) == count and self._holds(int(rarest[-1]), counts, last_use):
                break
        if self.limit is None:  # all rows: too many to look through again
            self.rows = self.rows[:0]
        return rarest

    def _fill(self, size: int, counts: Tensor, last_use: Tensor) -> None:
        rows = _rarest(torch.arange(len(counts), device=counts.device), counts, last_use, size + 1)
        self.rows = rows[:size].sort().values
        outside = rows[size:].tolist()
        self.limit = (int(counts[outside[0]]), int(last_use[outside[0]]), outside[0]) if outside else None

    def _holds(self, row: int, counts: Tensor, last_use: Tensor) -> bool:
        return self.limit is None or (int(counts[row]), int(last_use[row]), row) < self.limit


def bucket_of(ids: Tensor, buckets: int) -> Tensor:
    """(N,) int64 bucket of each id: the id as an unsigned number, modulo `buckets`; so torchrec sends ids."""
    if buckets == 1:
        return torch.zeros_like(ids)
    rest = ids.remainder(buckets)
    return torch.where(ids < 0, rest + 2**64 % buckets, rest).remainder_(buckets)


def rows_of_bucket(num_rows: int, buckets: int) -> int:
    """How many rows each of so many buckets has.

    Raises:
        ValueError: `num_rows` does not divide, or leaves no row but the shared one.
    """
    if buckets < 1 or num_rows % buckets:
        raise ValueError(f"{num_rows} rows in {buckets} buckets; wanted buckets of equally many rows")
    if num_rows < 2 * buckets:
        raise ValueError(f"{num_rows} rows in {buckets} buckets; wanted 2 rows a bucket or more, one of them shared")
    return num_rows // buckets


def _places_within(bucket: Tensor, sizes: Tensor) -> Tensor:
    """(M,) how many elements of the same bucket stand before each."""
    if len(sizes) == 1:
        return torch.arange(len(bucket), device=bucket.device)
    order = bucket.argsort(stable=True)
    places = torch.empty_like(bucket)
    places[order] = torch.arange(len(bucket), device=bucket.device) - (sizes.cumsum(0) - sizes)[bucket[order]]
    return places


def _rarest(given: Tensor, counts: Tensor, last_use: Tensor, count: int) -> Tensor:
    """The `count` of these ascending rows with the lowest counts, then last uses, then numbers, in that order."""
    rows, rarity = lowest(given, counts[given], count)
    if len(rows):  # of those with the highest count the ones that were used last may give way to others
        limit = rarity.max()
        often = given[counts[given] == limit]
        rare = rows[rarity < limit]
        rows = torch.cat([rare, lowest(often, last_use[often], count - len(rare))[0]]).sort().values
    rows = rows[last_use[rows].argsort(stable=True)]
    return rows[counts[rows].argsort(stable=True)]


def _lowest(rows: Tensor, key: Tensor, count: int) -> Tensor:
    """The `count` of ascending rows of the lowest key, in the order of the key, then of the rows."""
    rows, key = lowest(rows, key, count)
    return rows[key.argsort(stable=True)]

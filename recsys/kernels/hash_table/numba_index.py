"""An index of ids on a CPU, by the kernels of `numba_kernels.py`: where the regions lie, and how they grow.

A region that is full grows by half, then splits in two, alone: no call moves more than the regions that it fills. Full
means 70 to 88 %, by a hash of the region's number, so that regions that fill alike do not all grow at once.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.cpu.threads import in_parts, num_parts, on_threads
from recsys.kernels.hash_table import numba_kernels as kernels
from recsys.kernels.hash_table.numba_kernels import LARGE, SMALL

Ids = np.ndarray[Any, np.dtype[np.int64]]

LEAST_SLAB, MOST_SLAB = 1 << 16, 1 << 26  # bytes; a large one has large pages
PAGE_BYTES = 4096
MOST_THREADS_BESIDE_INSERT = 2
MOST_LOG_PARTS = 3  # each thread of a claim looks at all ids of the call
REGION_BYTES = {units: units * kernels.UNIT * kernels.BUCKET_BYTES for units in (SMALL, LARGE)}


class NumbaIndex:
    """Rows by id. Rows are numbers in [0, 2^31 - 2) that the caller gives."""

    def __init__(self, expected: int = 0) -> None:
        self._depth, units = 0, SMALL
        while expected > _least_limit(units) << self._depth:
            self._depth, units = (self._depth, LARGE) if units == SMALL else (self._depth + 1, SMALL)
        size = 1 << self._depth
        self._memory = _Memory(size * REGION_BYTES[units])
        self._entries = self._memory.regions(size, units)
        self._regions = np.arange(size, dtype=np.int32)  # of each directory entry
        self._local_depth = np.full(size, self._depth, dtype=np.int32)  # of each region
        self._loads = np.zeros(
            (size, 3), dtype=np.int32
        )  # of each region: its ids, at most how many, and how many wait
        self._loads[:, 1] = [kernels.limit_of(region, units) for region in range(size)]
        self._free = np.empty((2, 0), dtype=np.int64)  # regions of each size that are empty
        self._sizes = np.array([0, 0, size], dtype=np.int64)  # of both stacks, and the number of regions
        self._places = np.empty(0, dtype=np.int64)  # addresses of what is claimed
        # Memory of the last call, for the next: to ask for it anew is to wait for every page of it.
        self._scratch = np.empty((3, 0), dtype=np.int64)
        self._every = np.empty(0, dtype=np.int64)
        self._lists: list[Ids] = []
        self._were_new = True  # most ids of the last insertion: then to look first for those that are known is in vain

    def __len__(self) -> int:
        return int(self._loads[: self._sizes[2], 0].sum())

    @property
    def num_slots(self) -> int:
        """For how many ids there is memory."""
        return int((np.unique(self._entries) & kernels.CODE_BITS).sum()) * kernels.UNIT * kernels.SLOTS

    @property
    def num_bytes(self) -> int:
        """Memory of the index."""
        arrays = self._entries, self._regions, self._local_depth, self._loads, self._free
        return self._memory.num_bytes + sum(array.nbytes for array in arrays)

    def gauges(self) -> dict[str, float]:
        """Share of slots that are taken, and buckets that are read to find an id: mean and most."""
        total = ids = most = 0
        for entry in np.unique(self._entries).tolist():
            read, here, longest = kernels.probed(entry)
            total, ids, most = total + read, ids + here, max(most, longest)
        return {"load": ids / self.num_slots, "mean_probe": total / ids if ids else 0.0, "max_probe": float(most)}

    def find(self, ids: Tensor) -> Tensor:
        """(N,) row of each id, -1 for one that is not there."""
        keys, rows = ids.numpy(), np.empty(len(ids), dtype=np.int64)
        entries, depth = self._entries, self._depth
        in_parts(lambda start, stop: kernels.find(keys, start, stop, entries, depth, rows), len(keys))
        return torch.from_numpy(rows)

    def claim(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) row of each id, and the (M,) places where the ids stand first that were not there, ascending.

        The row of an id that was not there is -(j + 2), where j is its first place. What was claimed must be settled
        before the next claim.
        """
        keys, found = ids.numpy(), self.find(ids).numpy()
        self._take_scratch(len(keys))
        self._places, unknown, firsts = self._scratch
        todo = unknown[: kernels.unknown_of(found, unknown)]
        while len(todo) and self._claim(keys, todo, found):
            todo = todo[found[todo] == kernels.PENDING]
            self._grow(keys, todo)
        return torch.from_numpy(found), torch.from_numpy(firsts[: kernels.firsts_of(found, firsts)].copy())

    def settle(self, ids: Tensor, found: Tensor, firsts: Tensor, rows: Tensor) -> None:
        """Give the claimed ids ids[firsts] their rows, -1 for those to be forgotten, and write them to `found`."""
        if len(rows) and rows.numpy().min() < 0:
            self.erase(ids[firsts[rows < 0]])
        kernels.settle(firsts.numpy(), rows.numpy(), self._places, found.numpy())
        kernels.resolved(found.numpy())

    def insert(self, ids: Tensor, free_rows: Tensor, next_row: int, room: int) -> tuple[Tensor, Tensor, int] | None:
        """(N,) rows, the (M,) places where ids stand first that got theirs, and how many ids were refused.

        None where claim and settlement, which work on all threads, are faster. A single thread that needs no lists and
        gives each row at once is as fast as several until there are more than two.
        """
        if num_parts(len(ids)) > MOST_THREADS_BESIDE_INSERT:
            return None
        keys = ids.numpy()
        self._take_scratch(len(keys))
        todo, new, every = self._scratch[0], self._scratch[1], self._every
        if self._were_new:
            found = np.empty(len(keys), dtype=np.int64)
            todo = every[: len(keys)]
        else:
            found = self.find(ids).numpy()
            todo = todo[: kernels.unknown_of(found, todo)]
        progress, at, why = np.zeros(2, dtype=np.int64), 0, kernels.DONE
        while at < len(todo):
            if why != kernels.DONE:
                self._take_memory() if why == kernels.NO_MEMORY else self._deepen()
            at, why = kernels.insert(
                keys,
                todo,
                at,
                self._entries,
                self._regions,
                self._depth,
                self._local_depth,
                self._loads,
                self._free,
                self._sizes,
                free_rows.numpy(),
                next_row,
                room,
                found,
                new,
                progress,
            )
        count, refused = progress.tolist()
        self._were_new = 2 * count > len(keys)
        return torch.from_numpy(found), torch.from_numpy(new[:count].copy()), refused

    def erase(self, ids: Tensor) -> Tensor:
        """(N,) row that each id had, -1 for one that was not there, or that stands in the call before."""
        rows = np.empty(len(ids), dtype=np.int64)
        kernels.erase(ids.numpy(), self._entries, self._regions, self._depth, self._loads, rows)
        return torch.from_numpy(rows)

    def export(self) -> tuple[Tensor, Tensor]:
        """All ids, and their rows, in the order of the rows."""
        size = len(self)
        ids, rows, at = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64), 0
        for entry in np.unique(self._entries).tolist():
            at = kernels.exported(entry, ids, rows, at)
        order = np.argsort(rows)
        return torch.from_numpy(ids[order]), torch.from_numpy(rows[order])

    def _claim(self, keys: Ids, todo: Ids, found: Ids) -> bool:
        """Find or claim keys[todo]; whether one of them found its region full."""
        least_depth = int(self._local_depth[: self._sizes[2]].min())  # a region's ids are all one thread's
        log_parts = min(int(np.log2(num_parts(len(todo)))), least_depth, MOST_LOG_PARTS)
        entries, regions, depth, loads = self._entries, self._regions, self._depth, self._loads
        # Each thread writes lists of its own: places of the call that lie side by side are not all one thread's.
        if len(self._lists) < 1 << log_parts or self._lists[0].shape[1] < len(todo):
            self._lists = [np.empty((3, 2 * len(todo)), dtype=np.int64) for _ in range(1 << log_parts)]
        claimed = self._lists

        def work(part: int) -> tuple[int, int]:
            return kernels.claim(keys, todo, part, log_parts, entries, regions, depth, loads, claimed[part])

        counts = on_threads(work, 1 << log_parts)

        def merge(start: int, stop: int) -> None:
            for (count, _), mine in zip(counts, claimed, strict=False):
                kernels.merged(mine, count, todo, start, stop, found, self._places)

        in_parts(merge, len(todo))
        return any(pending for _, pending in counts)

    def _grow(self, keys: Ids, todo: Ids) -> None:
        """Make room in the regions of keys[todo], which are full."""
        at, why = 0, kernels.NO_MEMORY
        while why != kernels.DONE:
            if why == kernels.NO_MEMORY:
                self._take_memory()
            else:
                self._deepen()
            at, why = kernels.grow(
                keys,
                todo,
                at,
                self._entries,
                self._regions,
                self._depth,
                self._local_depth,
                self._loads,
                self._free,
                self._sizes,
                self._places,
            )

    def _deepen(self) -> None:
        """One more bit of the hash leads through the directory."""
        self._entries, self._regions = np.repeat(self._entries, 2), np.repeat(self._regions, 2)
        self._depth += 1

    def _take_scratch(self, size: int) -> None:
        if size > self._scratch.shape[1]:
            self._scratch, self._every = np.empty((3, 2 * size), dtype=np.int64), np.arange(2 * size)

    def _take_memory(self) -> None:
        """Memory for regions that grow: some of each size, and numbers for new ones."""
        num_regions, room = int(self._sizes[2]), len(self._local_depth)
        more = max(4, num_regions // 64)
        if num_regions + more > room:
            size = max(2 * room, num_regions + more)
            self._local_depth = np.resize(self._local_depth, size)
            self._loads = np.resize(self._loads, (size, 3))
        most = int(self._sizes[:2].sum()) + 4 * more  # growth only ever lessens the sum
        if most > self._free.shape[1]:
            grown = np.empty((2, 2 * most), dtype=np.int64)
            grown[:, : self._free.shape[1]] = self._free
            self._free = grown
        for kind, units in enumerate((SMALL, LARGE)):
            missing = max(0, more * LARGE // units - int(self._sizes[kind]))
            size = int(self._sizes[kind])
            self._free[kind, size : size + missing] = self._memory.regions(missing, units)
            self._sizes[kind] += missing


class _Memory:
    """Zeroed memory for regions, aligned to cache lines."""

    def __init__(self, expected: int) -> None:
        self._slabs: list[np.ndarray[tuple[int], np.dtype[np.uint8]]] = []
        self._at = self._end = 0
        self.num_bytes = 0
        self._take(expected)

    def regions(self, count: int, units: int) -> Ids:
        """The directory entries of so many empty regions."""
        return np.array([self._region(units) for _ in range(count)], dtype=np.int64)

    def _region(self, units: int) -> int:
        size = REGION_BYTES[units]
        if self._at + size > self._end:
            self._take(min(max(LEAST_SLAB, self.num_bytes // 8), MOST_SLAB))
        address = self._at
        self._at += size
        return address | units

    def _take(self, num_bytes: int) -> None:
        slab = np.zeros(num_bytes + kernels.BUCKET_BYTES, dtype=np.uint8)
        slab[::PAGE_BYTES] = 0  # the machine gives memory when it is first written: now, not in a later call
        self._slabs.append(slab)
        self._at = -(-slab.ctypes.data // kernels.BUCKET_BYTES) * kernels.BUCKET_BYTES
        self._end = self._at + num_bytes
        self.num_bytes += slab.nbytes


def _least_limit(units: int) -> int:
    return int(units * kernels.UNIT * kernels.SLOTS * kernels.LEAST_FILL)

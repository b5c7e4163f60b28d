"""An index of ids on a CPU, by the kernels of `numba_kernels.py`: where the regions lie, and how they grow.

A region that is full grows by half, then splits in two, alone: no call moves more than the regions that it fills. All
memory is chunks of one size, so that what one region leaves is of use to any other.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.cpu.owed_memory import LARGE_PAGE_BYTES, Bytes, owed_memory
from recsys.kernels.cpu.threads import in_parts, num_parts, on_threads
from recsys.kernels.hash_table import numba_kernels as kernels
from recsys.kernels.hash_table.numba_kernels import LARGE, META, SMALL

Ids = np.ndarray[Any, np.dtype[np.int64]]
Counts = np.ndarray[Any, np.dtype[np.int32]]

LEAST_SLAB, MOST_SLAB = 1 << 16, 1 << 26  # bytes; a large one has large pages
PAGE_BYTES = 4096
MOST_REGIONS = 16  # for which memory is taken at once: less than a large page of it
CHUNK_BYTES = kernels.CHUNK * kernels.BUCKET_BYTES
MOST_THREADS_BESIDE_INSERT = 2
MOST_SCRATCH = 1 << 20  # ids of a call whose memory is kept for the next
MOST_PARTS = 8  # each thread of a claim looks at all ids of the call
# Cells of each part of the hashes, in the order of the cells. By their logarithms they lie evenly between 9 and 18: the
# parts double one after another.
WIDTHS = (9, 17, 10, 16, 11, 15, 12, 14, 11, 13)
MOST_ENTRIES, LEAST_ENTRIES = 16, 1 << 14  # of the directory: for each region, and beside
CHUNK_SLOTS = kernels.CHUNK * kernels.SLOTS


class NumbaIndex:
    """Rows by id. Rows are numbers in [0, 2^31 - 2) that the caller gives."""

    def __init__(self, expected: int = 0) -> None:
        shapes = [_shape(expected * width / sum(WIDTHS)) for width in WIDTHS]  # of each part: depth, chunks of a region
        sizes = np.array([1 << depth for depth, _ in shapes])
        starts = np.cumsum(sizes) - sizes
        of_cell = np.repeat(np.arange(len(WIDTHS)), WIDTHS)
        depths = np.array([depth for depth, _ in shapes], dtype=np.int64)
        self._cells = np.ascontiguousarray(np.stack([starts[of_cell], depths[of_cell]], axis=1))
        num_regions = int(sizes.sum())
        chunks = np.repeat([count for _, count in shapes], sizes)
        self._memory = _Memory(int(chunks.sum()) * CHUNK_BYTES)
        addresses = iter(self._memory.chunks(int(chunks.sum())).tolist())
        self._entries = np.zeros((num_regions, META + 1), dtype=np.int64)
        for region, count in enumerate(chunks.tolist()):
            self._entries[region, :count] = [next(addresses) for _ in range(count)]
            self._entries[region, META] = region << 2 | count
        self._local_depth = np.repeat([depth for depth, _ in shapes], sizes).astype(np.int32)  # of each region
        # Of each region: its ids, at most how many, and how many wait.
        self._loads = np.zeros((num_regions, 3), dtype=np.int32)
        self._loads[:, 1] = [kernels.limit_of(region, count) for region, count in enumerate(chunks.tolist())]
        self._free = np.empty(0, dtype=np.int64)  # chunks that are empty
        self._sizes = np.array([0, num_regions], dtype=np.int64)  # of that stack, and the number of regions
        self._places = np.empty(0, dtype=np.int64)  # addresses of what is claimed
        # Memory of the last call, for the next: to ask for it anew is to wait for every page of it.
        self._scratch = np.empty((0, 0), dtype=np.int64)
        self._lists: list[Ids] = []
        self._were_new = True  # most ids of the last insertion: then to look first for those that are known is in vain

    def __len__(self) -> int:
        return int(self._loads[: self._sizes[1], 0].sum())

    @property
    def num_slots(self) -> int:
        """For how many ids the regions have slots."""
        return int((self._entries[self._one_entry_each(), META] & 3).sum()) * CHUNK_SLOTS

    @property
    def num_bytes(self) -> int:
        """Memory of the index."""
        arrays = [self._cells, self._entries, self._local_depth, self._loads, self._free]
        arrays += [self._scratch, *self._lists]
        return self._memory.num_bytes + sum(array.nbytes for array in arrays)

    def gauges(self) -> dict[str, float]:
        """Share of slots that are taken, and buckets that are read to find an id: mean and most."""
        total = ids = most = 0
        for entry in self._one_entry_each().tolist():
            read, here, longest = kernels.probed(self._directory[1], entry)
            total, ids, most = total + read, ids + here, max(most, longest)
        return {"load": ids / self.num_slots, "mean_probe": total / ids if ids else 0.0, "max_probe": float(most)}

    def find(self, ids: Tensor) -> Tensor:
        """(N,) row of each id, -1 for one that is not there."""
        keys, rows = ids.numpy(), np.empty(len(ids), dtype=np.int64)
        cells, entries = self._directory
        in_parts(lambda start, stop: kernels.find(keys, start, stop, cells, entries, rows), len(keys))
        return torch.from_numpy(rows)

    def claim(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) row of each id, and the (M,) places where the ids stand first that were not there, ascending.

        The row of an id that was not there is -(j + 2), where j is its first place. What was claimed must be settled
        before the next claim.

        Raises:
            RuntimeError: too many ids have hashes that begin alike; nothing is claimed then.
        """
        keys, found = ids.numpy(), self.find(ids).numpy()
        self._places, unknown, firsts = self._take_scratch(len(keys), 3)
        todo = unknown[: kernels.unknown_of(found, unknown)]
        while len(todo) and self._claim(keys, todo, found):
            todo = todo[found[todo] == kernels.PENDING]
            try:
                self._grow(keys, todo)
            except (RuntimeError, MemoryError):
                self.erase(ids[torch.from_numpy(found < -1)])
                self._loads[:, 2] = 0
                raise
        return torch.from_numpy(found), torch.from_numpy(firsts[: kernels.firsts_of(found, firsts)].copy())

    def settle(self, ids: Tensor, found: Tensor, firsts: Tensor, rows: Tensor) -> None:
        """Give the claimed ids ids[firsts] their rows, -1 for those to be forgotten, and write them to `found`."""
        if len(rows) and rows.numpy().min() < 0:
            self.erase(ids[firsts[rows < 0]])
        kernels.settle(firsts.numpy(), rows.numpy(), self._places, found.numpy())
        kernels.resolved(found.numpy())
        self._places = np.empty(0, dtype=np.int64)
        self._drop_scratch()

    def insert(self, ids: Tensor, free_rows: Tensor, next_row: int, room: int) -> tuple[Tensor, Tensor, int] | None:
        """(N,) rows, the (M,) places where ids stand first that got theirs, and how many ids were refused.

        None where claim and settlement, which work on all threads, are faster. A single thread that needs no lists and
        gives each row at once is as fast as several until there are more than two.
        """
        if num_parts(len(ids)) > MOST_THREADS_BESIDE_INSERT:
            return None
        keys = ids.numpy()
        todo, new = self._take_scratch(len(keys), 2)
        if self._were_new:
            found = np.empty(len(keys), dtype=np.int64)
            todo = todo[: len(keys)]
            kernels.count_up(todo)
        else:
            found = self.find(ids).numpy()
            todo = todo[: kernels.unknown_of(found, todo)]
        progress, at, why = np.zeros(2, dtype=np.int64), 0, kernels.DONE
        while at < len(todo):
            if why != kernels.DONE:
                try:
                    self._make_way(why, keys[todo[at]])
                except (RuntimeError, MemoryError):
                    self.erase(ids[torch.from_numpy(new[: progress[0]])])
                    raise
            at, why = kernels.insert(
                keys,
                todo,
                at,
                *self._growing,
                free_rows.numpy(),
                next_row,
                room,
                found,
                new,
                progress,
            )
        count, refused = progress.tolist()
        self._were_new = 2 * count > len(keys)
        inserted = torch.from_numpy(new[:count].copy())
        self._drop_scratch()
        return torch.from_numpy(found), inserted, refused

    def erase(self, ids: Tensor) -> Tensor:
        """(N,) row that each id had, -1 for one that was not there, or that stands in the call before."""
        rows = np.empty(len(ids), dtype=np.int64)
        kernels.erase(ids.numpy(), *self._directory, self._loads, rows)
        return torch.from_numpy(rows)

    def export(self) -> tuple[Tensor, Tensor]:
        """All ids, and their rows, in the order of the rows."""
        size = len(self)
        ids, rows, at = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64), 0
        for entry in self._one_entry_each().tolist():
            at = kernels.exported(self._directory[1], entry, ids, rows, at)
        order = np.argsort(rows)
        return torch.from_numpy(ids[order]), torch.from_numpy(rows[order])

    def _claim(self, keys: Ids, todo: Ids, found: Ids) -> bool:
        """Find or claim keys[todo]; whether one of them found its region full."""
        parts = min(num_parts(len(todo)), MOST_PARTS)
        (cells, entries), loads = self._directory, self._loads
        # Each thread writes lists of its own: places of the call that lie side by side are not all one thread's.
        if len(self._lists) < parts or self._lists[0].shape[1] < len(todo):
            self._lists = [np.empty((3, len(todo)), dtype=np.int64) for _ in range(parts)]
        claimed = self._lists

        def work(part: int) -> tuple[int, int]:
            return kernels.claim(keys, todo, part, parts, cells, entries, loads, claimed[part])

        counts = on_threads(work, parts)

        def merge(start: int, stop: int) -> None:
            for (count, _), mine in zip(counts, claimed, strict=False):
                kernels.merged(mine, count, todo, start, stop, found, self._places)

        in_parts(merge, len(todo))
        return any(pending for _, pending in counts)

    def _grow(self, keys: Ids, todo: Ids) -> None:
        """Make room in the regions of keys[todo], which are full."""
        at, why = 0, kernels.NO_MEMORY
        while why != kernels.DONE:
            self._make_way(why, keys[todo[at]])
            at, why = kernels.grow(
                keys,
                todo,
                at,
                *self._growing,
                self._places,
            )

    @property
    def _directory(self) -> tuple[int, int]:
        """Addresses of the cells and of the entries."""
        return self._cells.ctypes.data, self._entries.ctypes.data

    @property
    def _growing(self) -> tuple[int, int, Counts, Counts, Ids, Ids]:
        """What kernels change that make regions grow."""
        return *self._directory, self._local_depth, self._loads, self._free, self._sizes

    def _make_way(self, why: int, key: int) -> None:
        """Give a kernel that could not make room for this id what it lacked."""
        if why == kernels.NO_MEMORY:
            self._take_memory()
        else:
            self._deepen(kernels.cell_of(key))

    def _deepen(self, cell: int) -> None:
        """One more bit of the hash leads through the directory of a cell's part.

        Raises:
            RuntimeError: the directory would be much larger than what it leads to.
        """
        if len(self._entries) > MOST_ENTRIES * int(self._sizes[1]) + LEAST_ENTRIES:
            raise RuntimeError(
                f"some {int(self._loads[:, 1].max())} ids share more bits of their hash than {len(self)} ids may by "
                "chance: somebody chose them so; mix the ids with a secret before they reach the table"
            )
        start, depth = self._cells[cell].tolist()
        stop = start + (1 << depth)
        doubled = np.repeat(self._entries[start:stop], 2, axis=0)
        self._entries = np.concatenate([self._entries[:start], doubled, self._entries[stop:]])
        self._cells[self._cells[:, 0] > start, 0] += 1 << depth
        self._cells[self._cells[:, 0] == start, 1] += 1

    def _take_scratch(self, size: int, arrays: int) -> Ids:
        """(arrays, >= size) that the next call may overwrite."""
        if size > self._scratch.shape[1] or arrays > len(self._scratch):
            shape = max(arrays, len(self._scratch)), max(size, self._scratch.shape[1])
            self._scratch = np.empty(shape, dtype=np.int64)
        return self._scratch[:arrays]

    def _drop_scratch(self) -> None:
        """A very large call leaves nothing behind."""
        if self._scratch.shape[1] > MOST_SCRATCH:
            self._scratch = np.empty((0, 0), dtype=np.int64)
        if self._lists and self._lists[0].shape[1] > MOST_SCRATCH:
            self._lists = []

    def _take_memory(self) -> None:
        """Chunks for regions that grow, and numbers for new ones."""
        (num_free, num_regions), room = self._sizes.tolist(), len(self._local_depth)
        more = min(max(4, num_regions // 64), MOST_REGIONS)
        if num_regions + more > room:
            size = max(room + room // 2, num_regions + more)
            self._local_depth = np.resize(self._local_depth, size)
            self._loads = np.resize(self._loads, (size, 3))
        missing = max(0, more * 2 * LARGE - num_free)
        most = num_free + missing + LARGE  # growth only ever lessens it, but for the chunks that it leaves last
        if most > len(self._free):
            self._free = np.concatenate([self._free, np.empty(most, dtype=np.int64)])
        self._free[num_free : num_free + missing] = self._memory.chunks(missing)
        self._sizes[0] += missing

    def _one_entry_each(self) -> Ids:
        """A directory entry of every region."""
        return np.unique(self._entries[:, META], return_index=True)[1]


class _Memory:
    """Zeroed memory for chunks, aligned to cache lines.

    A slab is owed by the machine, and first written, which is when it is given, a large page at a time.
    """

    def __init__(self, expected: int) -> None:
        self._slabs: list[Bytes] = []
        self._at = self._given = self._end = 0  # addresses: of the next chunk, and where given and all memory ends
        self.num_bytes = 0
        self._take(expected)
        self._give(self._end)

    def chunks(self, count: int) -> Ids:
        """Addresses of so many empty chunks."""
        parts = []
        while count:
            if self._at + CHUNK_BYTES > self._end:
                size = min(max(LEAST_SLAB, self.num_bytes // 32), MOST_SLAB)
                self._take(size - size % LARGE_PAGE_BYTES if size > LARGE_PAGE_BYTES else size)
            here = min(count, (self._end - self._at) // CHUNK_BYTES)
            parts.append(self._at + np.arange(here) * CHUNK_BYTES)
            self._at += here * CHUNK_BYTES
            while self._given < self._at:
                self._give(min(self._end, (self._given // LARGE_PAGE_BYTES + 1) * LARGE_PAGE_BYTES))
            count -= here
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _take(self, num_bytes: int) -> None:
        self._slabs.append(owed_memory(num_bytes + kernels.BUCKET_BYTES))
        self._at = self._given = -(-self._slabs[-1].ctypes.data // kernels.BUCKET_BYTES) * kernels.BUCKET_BYTES
        self._end = self._at + num_bytes

    def _give(self, end: int) -> None:
        """Have the memory of the slab up to this address."""
        first = self._slabs[-1].ctypes.data
        self._slabs[-1][self._given - first : end - first : PAGE_BYTES] = 0
        self.num_bytes += end - self._given
        self._given = end


def _shape(expected: float) -> tuple[int, int]:
    """Bits of the directory and chunks of a region with which a part holds so many ids."""
    depth, chunks = 0, SMALL
    while expected > kernels.LEAST_FILL * chunks * CHUNK_SLOTS * (1 << depth):
        depth, chunks = (depth, LARGE) if chunks == SMALL else (depth + 1, SMALL)
    return depth, chunks

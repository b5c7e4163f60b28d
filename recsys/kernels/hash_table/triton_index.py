"""An index of ids on a GPU, by the kernels of `triton_kernels.py`: where the regions lie, and how they grow.

The plan is that of the index on a CPU: a directory finds the region of an id by the first bits of its hash, and a
region that is full grows by half, or becomes two or more, alone. What a call moves are the ids of the regions that it
fills, each once, and nothing else; they and the new ids are then placed together, a program each region.

Which slot an id lies in is no one's to see: `find` and `erase` go by the id, `export` by the rows. Still it depends on
the stream of calls alone, for ids are placed in the order of their hashes, and no kernel uses an atomic.

`find` reads nothing on the host. `claim`, `settle` and `erase` wait for the GPU a few times, for the sizes of what they
sort; where no id is new, `claim` does so once and `settle` has nothing to do.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from recsys.kernels.hash_table import triton_kernels as kernels
from recsys.kernels.hash_table.sorted_index import first_places
from recsys.kernels.launch import launch_of
from recsys.kernels.mixing import mixed, shifted

UNIT = 128  # buckets: regions have a multiple
SMALL, LARGE = 2, 3  # units of a region
SLOTS, BUCKET_BYTES, CODE_BITS = 5, 64, 3  # as the kernels have them
FULL = 0.70, 0.88  # a region is, somewhere between: not all grow at once
LEAST_SLAB, MOST_SLAB = 1 << 20, 1 << 28  # bytes
MAX_DEPTH = 24  # 2^31 ids need 22
NOWHERE = -1  # in place of a directory entry: the region has no memory yet


class TritonIndex:
    """Rows by id. Rows are numbers in [0, 2^31 - 2) that the caller gives.

    Args:
        expected: so many ids need no growth.
        device: of all of it.
        unit: buckets; a region has 2 or 3 times as many.
        full: least and most share of a region's slots from which on it grows.
    """

    def __init__(
        self, expected: int, device: torch.device, *, unit: int = UNIT, full: tuple[float, float] = FULL
    ) -> None:
        self._device, self._unit, self._full = device, unit, full
        self._depth, units = 0, SMALL
        while expected > int(units * unit * SLOTS * full[0]) << self._depth:
            self._depth, units = (self._depth, LARGE) if units == SMALL else (self._depth + 1, SMALL)
        size = 1 << self._depth
        self._memory = _Memory(size * units * unit * BUCKET_BYTES, unit, device)
        # Of each region: directory entry, units, how many bits of the hash are its own, these bits, its ids.
        self._places = self._memory.regions(size, units)
        self._units = torch.full_like(self._places, units)
        self._depths = torch.full_like(self._places, self._depth)
        self._prefixes = torch.arange(size, device=device)
        self._counts = torch.zeros_like(self._places)
        self._regions = self._prefixes  # of each entry of the directory
        self._entries = self._places

    def __len__(self) -> int:
        return int(self._counts.sum())

    @property
    def num_slots(self) -> int:
        """For how many ids there is memory."""
        return int(self._units.sum()) * self._unit * SLOTS

    @property
    def num_bytes(self) -> int:
        """Memory of the index."""
        return self._memory.num_bytes + sum(table.nbytes for table in self._tables)

    def gauges(self) -> dict[str, float]:
        """Share of slots that are taken."""
        return {"load": len(self) / self.num_slots}

    def find(self, ids: Tensor) -> Tensor:
        """(N,) row of each id, -1 for one that is not there."""
        rows = torch.empty_like(ids)
        launch = self._launch("find")
        kernels.find_kernel[(triton.cdiv(len(ids), launch["BLOCK_N"]),)](
            ids, rows, len(ids), self._memory.base, self._entries, self._depth, UNIT=self._unit, **launch
        )
        return rows

    def claim(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) row of each id, and the (M,) places where the ids stand first that were not there, ascending.

        The row of an id that was not there is -(j + 2), where j is its first place. The table changes in `settle`.
        """
        found = self.find(ids)
        unknown = (found < 0).nonzero().squeeze(1)
        if len(unknown) == 0:
            return found, unknown
        first = unknown[first_places(ids[unknown])]
        found[unknown] = -2 - first
        return found, unknown[first == unknown]

    def settle(self, ids: Tensor, found: Tensor, firsts: Tensor, rows: Tensor) -> None:
        """Give the claimed ids ids[firsts] their rows, -1 for those to be forgotten, and write them to `found`."""
        found[firsts] = rows
        places = torch.arange(len(found), device=self._device)
        found.copy_(found[torch.where(found < -1, -2 - found, places)])
        kept = (rows >= 0).nonzero().squeeze(1)
        self._insert(ids[firsts[kept]], rows[kept])

    def insert(self, ids: Tensor, free_rows: Tensor, next_row: int, room: int) -> None:
        """Claim and settlement are all there is."""

    def erase(self, ids: Tensor) -> Tensor:
        """(N,) row that each id had, -1 for one that was not there, or that stands in the call before."""
        erased = torch.full_like(ids, -1)
        firsts = (first_places(ids) == torch.arange(len(ids), device=self._device)).nonzero().squeeze(1)
        once = ids[firsts]
        rows, steps = torch.full_like(once, -1), torch.zeros_like(once)
        launch = self._launch("erase")
        grid = (triton.cdiv(len(once), launch["BLOCK_N"]),)
        state = self._memory.base, self._entries, self._depth
        kernels.erase_kernel[grid](once, rows, steps, len(once), *state, UNIT=self._unit, **launch)
        erased[firsts] = rows
        known = (rows >= 0).nonzero().squeeze(1)
        h, steps = mixed(once[known]), steps[known]
        regions = self._regions[_prefix_of(h, self._depth)]
        self._counts -= torch.bincount(regions, minlength=len(self._counts))
        self._lessen(h, regions, steps)
        return erased

    def export(self) -> tuple[Tensor, Tensor]:
        """All ids, and their rows, in the order of the rows."""
        ids, rows = self._contents(self._places, self._counts, clear=False)
        order = rows.argsort()
        return ids[order], rows[order]

    def _lessen(self, h: Tensor, regions: Tensor, steps: Tensor) -> None:
        """Take ids out of the counts of the buckets that they had gone past."""
        ids = torch.repeat_interleave(steps)
        nth = torch.arange(len(ids), device=self._device) - (steps.cumsum(0) - steps)[ids]
        num_buckets = self._units[regions[ids]] * self._unit
        own = ((h[ids] & 0xFFFFFFFF) * num_buckets) >> 32
        begins = self._places[regions[ids]] >> CODE_BITS
        buckets, times = torch.unique(begins + (own + nth) % num_buckets, return_counts=True)
        launch = self._launch("lessen")
        grid = (triton.cdiv(len(buckets), launch["BLOCK_N"]),)
        kernels.lessen_kernel[grid](buckets, times, len(buckets), self._memory.base, **launch)

    def _insert(self, ids: Tensor, rows: Tensor) -> None:
        """Put ids into the table that are not there, each once."""
        if len(ids) == 0:
            return
        full = self._full_regions(mixed(ids))
        if len(full):
            ids, rows = self._with_room(full, ids, rows)
        self._place(ids, rows)

    def _with_room(self, full: Tensor, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take what full regions hold out of the table, and make room in their place for it and for `ids`: all of it.

        Raises:
            RuntimeError: there is no memory, or too many hashes begin alike; the table is as it was.
        """
        moved = self._contents(self._places[full], self._counts[full], clear=True)
        self._counts[full] = 0
        before, depth = [table.clone() for table in self._tables], self._depth
        ids, rows = torch.cat([ids, moved[0]]), torch.cat([rows, moved[1]])
        h = mixed(ids)
        try:
            self._places[full] = NOWHERE
            larger = full
            while len(larger):
                self._enlarge(larger, h)
                larger = self._full_regions(h)
            self._find_places()
        except RuntimeError:
            self._tables, self._depth = before, depth
            self._place(*moved)
            raise
        self._memory.take_back(before[0][full], before[1][full])
        return ids, rows

    @property
    def _tables(self) -> list[Tensor]:
        return [
            self._places,
            self._units,
            self._depths,
            self._prefixes,
            self._counts,
            self._regions,
            self._entries,
        ]

    @_tables.setter
    def _tables(self, tables: list[Tensor]) -> None:
        (
            self._places,
            self._units,
            self._depths,
            self._prefixes,
            self._counts,
            self._regions,
            self._entries,
        ) = tables

    def _full_regions(self, h: Tensor) -> Tensor:
        """The regions that have no room for ids of these hashes."""
        return (self._counts + self._demand(h) > self._most_ids(self._units)).nonzero().squeeze(1)

    def _demand(self, h: Tensor) -> Tensor:
        """How many of the hashes are of each region."""
        return torch.bincount(self._regions[_prefix_of(h, self._depth)], minlength=len(self._counts))

    def _most_ids(self, units: Tensor) -> Tensor:
        """How many ids each region may hold, had it so many units."""
        share = ((mixed(torch.arange(len(units), device=self._device)) >> 11) & ((1 << 53) - 1)).double() / 2.0**53
        least, most = self._full
        return (units * (self._unit * SLOTS) * (least + (most - least) * share)).long()

    def _enlarge(self, full: Tensor, h: Tensor) -> None:
        """Make empty regions larger by half, where that is enough for the hashes, and else two of each."""
        suffices = self._demand(h) <= self._most_ids(torch.full_like(self._units, LARGE))
        by_half = (self._units[full] == SMALL) & suffices[full]
        self._units[full[by_half]] = LARGE
        split = full[~by_half]
        self._units[split] = SMALL
        self._depths[split] += 1
        self._prefixes[split] *= 2
        self._places = F.pad(self._places, (0, len(split)), value=NOWHERE)
        self._counts = F.pad(self._counts, (0, len(split)))
        self._units = torch.cat([self._units, self._units[split]])
        self._depths = torch.cat([self._depths, self._depths[split]])
        self._prefixes = torch.cat([self._prefixes, self._prefixes[split] + 1])
        depth = int(self._depths.max())
        if depth > MAX_DEPTH:
            raise RuntimeError(
                f"hash_table: the hashes of {int(self._demand(h).max())} ids begin with the same {MAX_DEPTH} bits; "
                "ids that were not made for it do not: hash them with a secret key before"
            )
        self._depth = depth
        widths = 1 << (depth - self._depths)
        order = (self._prefixes * widths).argsort()
        self._regions = torch.repeat_interleave(order, widths[order], output_size=1 << depth)

    def _find_places(self) -> None:
        """Memory for the regions that have none."""
        for units in (SMALL, LARGE):
            lacking = ((self._places == NOWHERE) & (self._units == units)).nonzero().squeeze(1)
            self._places[lacking] = self._memory.regions(len(lacking), units)
        self._entries = self._places[self._regions]

    def _place(self, ids: Tensor, rows: Tensor) -> None:
        """Put ids into regions that have room for them."""
        h = mixed(ids)
        regions = self._regions[_prefix_of(h, self._depth)]
        self._counts += torch.bincount(regions, minlength=len(self._counts))
        # By region, then by the own bucket, whatever the number of buckets; equal ones as they came.
        keys, order = ((regions << 32) | (h & 0xFFFFFFFF)).sort(stable=True)
        met, times = torch.unique_consecutive(keys >> 32, return_counts=True)
        launch = self._launch("place")
        kernels.place_kernel[(len(met),)](
            ids[order],
            rows[order],
            keys,
            F.pad(times.cumsum(0), (1, 0)),
            self._places[met],
            self._memory.base,
            UNIT=self._unit,
            LOG_MOST=math.ceil(math.log2(LARGE * self._unit * SLOTS + 1)),
            BLOCK_B=self._block,
            **launch,
        )

    def _contents(self, entries: Tensor, counts: Tensor, *, clear: bool) -> tuple[Tensor, Tensor]:
        """Ids and rows of regions that hold so many, which may be left empty."""
        ends = counts.cumsum(0)
        ids = torch.empty(int(ends[-1]), dtype=torch.int64, device=self._device)
        rows = torch.empty_like(ids)
        launch = self._launch("contents")
        kernels.contents_kernel[(len(entries),)](
            entries,
            ends - counts,
            ids,
            rows,
            self._memory.base,
            UNIT=self._unit,
            BLOCK_B=self._block,
            CLEAR=clear,
            **launch,
        )
        return ids, rows

    def _launch(self, kernel: str) -> Mapping[str, int]:
        return launch_of("hash_table", kernel, self._device, slots=SLOTS)

    @property
    def _block(self) -> int:
        return triton.next_power_of_2(LARGE * self._unit)


class _Memory:
    """Zeroed memory for regions: slabs that never move, and the regions in them that were given back empty."""

    def __init__(self, expected: int, unit: int, device: torch.device) -> None:
        self._unit, self._device = unit, device
        self._slabs: list[Tensor] = []
        self._at = self._end = 0  # buckets from the base on
        none = torch.empty(0, dtype=torch.int64, device=device)
        self._free = {SMALL: none, LARGE: none}
        self._take(max(expected, LEAST_SLAB))

    @property
    def base(self) -> Tensor:
        """From where on the kernels count."""
        return self._slabs[0]

    @property
    def num_bytes(self) -> int:
        return sum(slab.nbytes for slab in self._slabs)

    def regions(self, count: int, units: int) -> Tensor:
        """The directory entries of so many empty regions."""
        free = self._free[units]
        given = [free[max(0, len(free) - count) :]]
        self._free[units] = free[: len(free) - len(given[0])]
        count -= len(given[0])
        size = units * self._unit
        while count:
            fit = min(count, (self._end - self._at) // size)
            numbers = torch.arange(self._at, self._at + fit * size, size, device=self._device)
            given.append((numbers << CODE_BITS) | units)
            self._at, count = self._at + fit * size, count - fit
            if count:
                self._take(max(count * size * BUCKET_BYTES, min(max(LEAST_SLAB, self.num_bytes // 8), MOST_SLAB)))
        return torch.cat(given)

    def take_back(self, entries: Tensor, units: Tensor) -> None:
        """Regions that were left empty."""
        for size in self._free:
            self._free[size] = torch.cat([self._free[size], entries[units == size]])

    def _take(self, num_bytes: int) -> None:
        slab = torch.zeros(num_bytes // 4, dtype=torch.int32, device=self._device)
        if slab.data_ptr() % BUCKET_BYTES:  # no allocator of torch does so
            raise RuntimeError(f"hash_table: memory on {self._device} is not aligned to {BUCKET_BYTES} bytes")
        self._slabs.append(slab)
        self._at = (slab.data_ptr() - self.base.data_ptr()) // BUCKET_BYTES
        self._end = self._at + num_bytes // BUCKET_BYTES


def _prefix_of(h: Tensor, depth: int) -> Tensor:
    """The first `depth` bits."""
    return shifted(h, 64 - depth) if depth else torch.zeros_like(h)

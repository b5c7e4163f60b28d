"""Rows of which at most so many lie in memory, the others in a file: a table that is larger than memory.

    in memory, of every row    id, last touch, count, and where its vector and state lie
    in memory, of hot rows     vector and state, in pages
    in the file, slot = row    vector and state of cold rows (an older copy of a hot one), with id and checksum

A row that training looks up comes into memory; the one that was used longest ago goes to its slot for it. Evaluation
reads cold rows where they lie. A call may touch more rows than fit: they are worked on in turn. Where a row lies
changes no number: the table is bit for bit the one that is wholly in memory, and so is its state.

That ids, touches and counts stay in memory (16 or 20 bytes a row, beside the index) is what lets eviction, expiry and
`changes` reach cold rows without reading the file.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys.kernels.row_pages import RowOptimizer, RowPages
from recsys.kernels.row_pages.column import Column
from recsys.kernels.row_pages.marks import FREE
from recsys.kernels.row_pages.pages import default_page_rows
from recsys.models.embedding_table.clock import MOST_TICKS
from recsys.models.embedding_table.cold_file import ColdFile, Slots
from recsys.models.embedding_table.eviction import EvictionQueue

NOWHERE, COLD = -2, -1  # places below those in memory: of a free row, and of one in the file
PART_ROWS = 1 << 16  # moved in one go where all are


class ColdRows(RowPages):
    """RowPages of which at most `hot_rows` rows lie in memory.

    Args:
        width: numbers of a row.
        optimizer: of the updates.
        hot_rows: most rows in memory.
        path: of the file; see `ColdFile` for what an existing one may be.
        page_rows: rows of a page, a power of two; by default the fewest that take 2 MB. By fewer the file grows too,
            else by 64 MB.
        are_counted: whether touches are.

    Raises:
        CheckpointError: the file is of another table, or is open elsewhere.
        StorageError: it cannot be opened.
    """

    def __init__(
        self,
        width: int,
        optimizer: RowOptimizer,
        hot_rows: int,
        path: str | Path,
        *,
        page_rows: int | None = None,
        are_counted: bool = False,
    ) -> None:
        super().__init__(width, optimizer, page_rows=page_rows, are_counted=are_counted)
        self.hot_rows = hot_rows
        hot_page = min(page_rows or default_page_rows(width), 1 << (hot_rows - 1).bit_length())
        self.hot = RowPages(width, optimizer, page_rows=hot_page)  # ids: row of the table; ticks: use
        self.places = Column(1, torch.int32, NOWHERE, self.log_page, self.device)
        is_small = page_rows is not None and page_rows < default_page_rows(width)
        self.file = ColdFile(path, width, self.state_width, page_rows if is_small else None)
        self.vectors = _Part(self, self.hot.vectors, lambda slots: slots.vectors)
        self.states = _Part(self, self.hot.states, lambda slots: slots.states)
        self.num_promotions = self.num_spills = 0
        self._spilled_finite = True
        self._sums = torch.zeros(hot_rows, dtype=torch.int64)  # of the older copy in the file; 0: there is none
        self._forget_hot()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, of which there are none.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            f"a table whose rows lie in the cold file {self.file.path} cannot be copied or pickled: one table alone "
            "may have the file open; save its state(), and load it into a table of another cold_file, or of none"
        )

    @property
    def num_rows(self) -> int:
        """For how many rows there is room."""
        return len(self.ticks.pages) << self.log_page

    @property
    def num_hot(self) -> int:
        """How many rows lie in memory."""
        return self._given - len(self._free)

    @property
    def num_bytes(self) -> int:
        """Memory: hot rows, which of them go next, and what is kept of all."""
        kept = [column.num_bytes for column in self._kept()]
        return self.hot.num_bytes + sum(kept) + self._sums.nbytes + self._queue.num_bytes

    def grow(self, num_rows: int) -> None:
        """Make room for so many rows.

        Raises:
            StorageError: the disk is full; nothing changed.
        """
        if num_rows > self.hot_rows:
            self.file.grow(num_rows)
        for column in self._kept():
            column.grow(-(-num_rows // self.page_rows))

    def clear(self) -> None:
        """Forget all rows, in the file too."""
        for column in self._kept():
            column.pages.clear()
            column.read_addresses()
        self.hot.clear()
        self._forget_hot()
        self._spilled_finite = True
        self.file.wipe_all()

    def touch(self, rows: Tensor) -> None:
        """Bring rows (N,) int64 into memory, as many as fit; -1 and free ones are passed over."""
        self._use = self._next_use()
        places = self._places_of(rows)
        self.hot.ticks.put_all(places, self._use)
        self._bring_in(rows[places == COLD])

    def update(self, rows: Tensor, gradients: Tensor, lr: float, tick: int) -> None:
        """One step of the optimizer, and the tick, for every row that is neither below 0 nor free.

        Args:
            rows: (N,) int64, any number of times each; its gradients are summed in the order of the call.
            gradients: (N, width) float32.
            lr: learning rate.
            tick: when.
        """
        self._tell(rows)
        left, values = rows, gradients
        while len(left):
            places = self._places_of(left)
            if bool((places == COLD).any()):  # else the look-up brought them
                self.touch(left)
                places = self._places_of(left)
            self.hot.update(places, values, lr, self._use)
            known = torch.where(places < 0, -1, left)
            self.ticks.put_all(known, tick)
            self.count(known)
            is_left = places == COLD
            left, values = left[is_left], values[is_left]

    def begin(self, rows: Tensor, ids: Tensor, seed: int, scale: float, tick: int) -> None:
        """Make free rows (N,) int64, each once, those of new ids (N,) int64."""
        self._tell(rows)
        self.ids.put(rows, ids[:, None])
        for start, slots in self._room_for(rows):
            self.hot.begin(slots, ids[start : start + len(slots)], seed, scale, self._use)
            self.hot.ids.put(slots, rows[start : start + len(slots), None])
        self.ticks.put_all(rows, tick)
        if self.counts is not None:
            self.counts.put_all(rows, 0)

    def free(self, rows: Tensor) -> None:
        """Make rows (N,) int64, each once, those of no id: nothing of what they held stays, in the file neither."""
        self._tell(rows)
        places = self._places_of(rows)
        slots = places[places >= 0]
        has_copy = torch.zeros(len(rows), dtype=torch.bool)
        has_copy[places >= 0] = self._sums[slots] != 0
        copied = rows[has_copy | (places == COLD)]
        if len(copied):
            self.file.wipe(copied.sort().values)
        self.hot.free(slots)
        self._give_back(slots)
        for column in self._kept():
            column.put_all(rows, column.fill)

    def is_finite(self) -> bool:
        """Whether no number of any vector in memory is NaN or infinite, nor was when it went to the file."""
        return self._spilled_finite and self.hot.is_finite()

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, width) vectors, (N, state_width) states and (N,) ticks of rows (N,) int64, none below 0; none moves."""
        places = self._places_of(rows)
        vectors, states = self.hot.vectors.gather(places), self.hot.states.gather(places)
        states[places == NOWHERE] = self.states.fill
        is_cold = places == COLD
        if bool(is_cold.any()):
            slots, inverse = self._slots_of(rows[is_cold])
            vectors[is_cold], states[is_cold] = slots.vectors[inverse], slots.states[inverse]
        return vectors, states, self.ticks.gather(rows).squeeze(1)

    def write(self, rows: Tensor, vectors: Tensor, states: Tensor | None, ticks: Tensor | int) -> None:
        """Put numbers in rows (N,) int64, each once and none below 0. Without states they are those of a new row."""
        self._tell(rows)
        places = self._places_of(rows)
        self.hot.vectors.put(places, vectors)
        kept = states if states is not None else torch.tensor(self.states.fill).expand(len(rows), self.state_width)
        self.hot.states.put(places, kept)
        elsewhere = (places < 0).nonzero().squeeze(1)
        if len(elsewhere):
            has_copy = places[elsewhere] == COLD
            sums = torch.zeros(len(elsewhere), dtype=torch.int64)
            sums[has_copy] = self.file.read(rows[elsewhere][has_copy], self._ids_of(rows[elsewhere][has_copy])).sums
            for start, slots in self._room_for(rows[elsewhere]):
                some = elsewhere[start : start + len(slots)]
                self.hot.write(slots, vectors[some], kept[some], self._use)
                self.hot.ids.put(slots, rows[some, None])
                self._sums[slots] = sums[start : start + len(slots)]
        self.put_ticks(rows, ticks)

    def restore(self, values: Mapping[str, Tensor], num_rows: int) -> None:
        """Take the first rows of columns, by name, in place of all that is here; those used last lie in memory.

        Ids, ticks and counts are among them; vectors and states may come by `fill`, all of them.
        """
        self.clear()
        self.grow(num_rows)
        every = torch.arange(num_rows)
        for name in ("ticks", "ids", "counts"):
            if name in self.columns:
                self.columns[name].put(every, values[name])
        live = (values["ticks"].squeeze(1) != FREE).nonzero().squeeze(1)
        order = values["ticks"].squeeze(1)[live].sort(stable=True).indices
        self.places.put_all(live[order[: -self.hot_rows]], COLD)
        for _ in self._room_for(live[order[-self.hot_rows :]]):
            pass  # their places are theirs, and filled below
        if "vectors" in values:
            self.fill(0, {name: values[name] for name in ("vectors", "states")})

    def fill(self, start: int, values: Mapping[str, Tensor]) -> None:
        """Take vectors and states (N, width) of rows from `start` on, while all of it is restored."""
        every = torch.arange(start, start + len(values["vectors"]))
        for rows in torch.split(every, PART_ROWS):
            vectors, states = (values[name][rows - start] for name in ("vectors", "states"))
            places = self._places_of(rows)
            is_cold, is_hot = places == COLD, places >= 0
            cold, hot = rows[is_cold], rows[is_hot]
            if len(cold):
                old = torch.zeros(1, dtype=torch.int64)
                self.file.write(cold, self._ids_of(cold), vectors[is_cold], states[is_cold], old)
            self.hot.write(places[is_hot], vectors[is_hot], states[is_hot], self._use)
            self.hot.ids.put(places[is_hot], hot[:, None])
        self.let_go()

    def let_go(self) -> None:
        """Keep nothing of the file in the memory of this process; what is wanted again comes back by itself."""
        self.file.let_go()

    def resume(self, values: Mapping[str, Tensor], live: Tensor, num_rows: int) -> None:
        """As `restore`, with vectors and states of rows `live` (M,) int64 in the file, which was checked."""
        self.file.take_up()
        self.file.grow(num_rows)
        for column in self._kept():
            column.pages.clear()
            column.read_addresses()
            column.grow(-(-num_rows // self.page_rows))
        self.hot.clear()
        self._forget_hot()
        every = torch.arange(num_rows)
        for name in ("ticks", "ids", "counts"):
            if name in self.columns:
                self.columns[name].put(every, values[name])
        self.places.put_all(live, COLD)

    def close(self, version: str | None, num_rows: int) -> None:
        """Let go of the file; with a version all of the first rows are in it then, and it is marked.

        Raises:
            StorageError: the disk is full or failed, and the file has no mark.
        """
        if version is not None and self.file.is_open:
            self.file.grow(num_rows)
            self._spill((self.hot.all_of(self.hot.ticks, self._given) != FREE).nonzero()[:, 0])
        self.file.close(version)

    def all_of(self, column: Column, num_rows: int) -> Tensor:
        """(num_rows, width) of the first rows of a column, copied into one tensor."""
        if not isinstance(column, _Part):
            return super().all_of(column, num_rows)
        out = torch.empty(num_rows, column.width)
        for rows in torch.split(torch.arange(num_rows), PART_ROWS):
            if len(rows):
                out[int(rows[0]) : int(rows[-1]) + 1] = column.gather(rows)
        return out

    def gauges(self) -> dict[str, float]:
        """Rows in memory and in the file, bytes of the file, and moves since the table was made."""
        return {
            "hot": self.num_hot,
            "file_bytes": self.file.num_bytes,
            "promotions": self.num_promotions,
            "spills": self.num_spills,
        }

    def _kept(self) -> list[Column]:
        """Columns that lie in memory for all rows."""
        return [self.ticks, self.ids, self.places, *([] if self.counts is None else [self.counts])]

    def _forget_hot(self) -> None:
        self._given, self._use = 0, 0
        self._free = torch.empty(0, dtype=torch.int64)
        self._sums.zero_()
        self._queue = self._new_queue()

    def _new_queue(self) -> EvictionQueue:
        return EvictionQueue(self.hot, lambda: self._given, self.hot_rows, parts=8)

    def _places_of(self, rows: Tensor) -> Tensor:
        """(N,) int64: where in memory rows (N,) lie; COLD, or NOWHERE for free ones and those below 0."""
        return torch.where(rows < 0, NOWHERE, self.places.gather(rows).squeeze(1).long())

    def _ids_of(self, rows: Tensor) -> Tensor:
        return self.ids.gather(rows).squeeze(1)

    def _slots_of(self, rows: Tensor) -> tuple[Slots, Tensor]:
        """What the file holds for rows (N,), each once and in its order, and (N,) where each one stands."""
        unique, inverse = torch.unique(rows, return_inverse=True)
        return self.file.read(unique, self._ids_of(unique)), inverse

    def _bring_in(self, rows: Tensor) -> None:
        """Cold rows (N,) into memory, as many as fit beside those that are in use."""
        for some in torch.split(torch.unique(rows), PART_ROWS):
            room = self._make_room(len(some))
            if room == 0:
                return
            come = some[:room]
            held = self.file.read(come, self._ids_of(come))
            slots = self._taken(room)
            self.hot.write(slots, held.vectors, held.states, self._use)
            self.hot.ids.put(slots, come[:, None])
            self.places.put(come, slots[:, None])
            self._sums[slots] = held.sums
            self.num_promotions += room

    def _room_for(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Parts of rows (N,) that come into memory, to be filled at once: where each begins, and its places."""
        start = 0
        while start < len(rows):
            room = self._make_room(len(rows) - start)
            if room == 0:  # more come than fit, and those that came first go
                self._use = self._next_use()
                continue
            slots = self._taken(room)
            self.places.put(rows[start : start + room], slots[:, None])
            yield start, slots
            start += room

    def _make_room(self, wanted: int) -> int:
        """How many rows may come into memory: at most so many, and fewer if the rows in use leave no more room."""
        room = len(self._free) + self.hot_rows - self._given
        if room < wanted:
            slots = self._queue.take(wanted - room, self._use)
            try:
                self._spill(slots)
            except BaseException:  # what lies here still is looked for again
                self._queue = self._new_queue()
                raise
        return min(wanted, len(self._free) + self.hot_rows - self._given)

    def _taken(self, count: int) -> Tensor:
        """(count,) int64 places in memory, after room was made."""
        freed = self._free[max(0, len(self._free) - count) :]
        self._free = self._free[: len(self._free) - len(freed)]
        fresh = torch.arange(self._given, self._given + count - len(freed))
        self._given += len(fresh)
        self.hot.grow(self._given)
        return torch.cat([freed, fresh])

    def _give_back(self, slots: Tensor) -> None:
        self._sums[slots] = 0
        self._free = torch.cat([self._free, slots])

    def _spill(self, slots: Tensor) -> None:
        """Write what lies at these places (N,) of memory to the file."""
        rows, order = self.hot.ids.gather(slots).squeeze(1).sort()
        for some, at in zip(torch.split(rows, PART_ROWS), torch.split(slots[order], PART_ROWS), strict=True):
            vectors, states, _ = self.hot.read(at)
            self._spilled_finite &= bool(torch.isfinite(vectors).all())
            self.file.write(some, self._ids_of(some), vectors, states, self._sums[at])
            self.places.put_all(some, COLD)
            self.hot.ticks.put_all(at, FREE)
            self._give_back(at)
        self.num_spills += len(rows)

    def _next_use(self) -> int:
        if self._use < MOST_TICKS:
            return self._use + 1
        uses = self.hot.all_of(self.hot.ticks, self._given)
        kept, numbers = torch.unique(uses[uses != FREE], return_inverse=True)
        uses[uses != FREE] = numbers.to(uses.dtype)
        self.hot.ticks.put(torch.arange(self._given), uses)
        self._queue = self._new_queue()
        return len(kept)


class _Part(Column):
    """Vectors or states of rows that lie in memory or in the file."""

    def __init__(self, owner: ColdRows, hot: Column, of: Callable[[Slots], Tensor]) -> None:
        super().__init__(hot.width, hot.dtype, hot.fill, owner.log_page, owner.device)
        self._owner, self._hot, self._of = owner, hot, of

    def gather(self, rows: Tensor) -> Tensor:
        """(N, width) the rows (N,) int64, none of which moves; zeros where one is below 0."""
        owner = self._owner
        places = owner._places_of(rows)
        out = self._hot.gather(places)
        if self.fill:
            out[(places == NOWHERE) & (rows >= 0)] = self.fill
        is_cold = places == COLD
        if bool(is_cold.any()):
            slots, inverse = owner._slots_of(rows[is_cold])
            out[is_cold] = self._of(slots)[inverse]
        return out

    def put(self, rows: Tensor, values: Tensor) -> None:
        """Write `values` (N, width) to rows (N,) int64 that are not free, after they came into memory."""
        owner, left = self._owner, rows
        while len(left):
            owner.touch(left)
            places = owner._places_of(left)
            self._hot.put(places, values)
            is_left = places == COLD
            left, values = left[is_left], values[is_left]

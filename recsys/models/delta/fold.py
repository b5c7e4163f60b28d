"""A base and the deltas after it, put together: the state of a trainer, or the next base.

Rows stay in the deltas' files. They are put together block by block: of each block of row numbers, what the base holds
and over it what each delta holds, in their order. So one block is in memory at a time, however many rows there are.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from recsys.errors import DeltaError, GapError
from recsys.models.delta.delta import Delta, Part, RowState, TableDelta, Tables, Version, row_key
from recsys.models.delta.rows import MEMORY_BYTES, Rows, part_of
from recsys.models.embedding_table import EmbeddingTable

IDS, ROWS = "ids", "rows"
WIDE = ("vectors", "states")  # columns that a table takes block by block


class FoldedTable:
    """Rows of a table, free ones too, and what belongs to no row.

    Args:
        name: to be named.
        memory_bytes: for rows that are put together.
    """

    def __init__(self, name: str, memory_bytes: int = MEMORY_BYTES) -> None:
        self._name, self._memory_bytes = name, memory_bytes
        self._num_rows = 0
        self._layers: list[_Layer] = []
        self.parts: dict[str, Tensor] = {}
        self.unknown: Tensor | None = None
        self._raw_ids: dict[int, str] = {}

    def apply(self, delta: TableDelta, columns: Mapping[str, Rows]) -> None:
        """Go on by a delta, the first of which is a base's.

        Args:
            delta: what of it belongs to no row.
            columns: of its rows, with their row numbers.

        Raises:
            DeltaError: it holds no state, as those that servers are sent, or other columns than the base.
        """
        state = delta.state
        if state is None:
            raise DeltaError(f"a delta of {self._name!r} has no state of a trainer; take the trainer's own log")
        if self._layers and columns.keys() != self._layers[0].columns.keys():
            wanted = ", ".join(sorted(self._layers[0].columns))
            raise DeltaError(f"a delta of {self._name!r} has the columns {', '.join(sorted(columns))}; wanted {wanted}")
        self._num_rows = state.num_rows
        self._layers.append(_Layer(self._name, columns))
        self.parts = {
            name: torch.cat([self.parts[name][: part.kept], part.tail]) if part.kept else part.tail
            for name, part in state.parts.items()
        }
        if delta.unknown is not None:
            self.unknown = delta.unknown
        for id_ in delta.deleted.tolist() if self._raw_ids else ():
            self._raw_ids.pop(id_, None)
        self._raw_ids |= delta.raw_ids

    def state(self, table: EmbeddingTable) -> dict[str, Tensor]:
        """What `table.load_state` takes, all in memory."""
        state = self.outline(table)
        for name in WIDE:
            state[name] = torch.empty(state[name].shape, dtype=state[name].dtype)
        for start, columns in self.blocks(table):
            for name, values in columns.items():
                state[name][start : start + len(values)] = values
        return state

    def outline(self, table: EmbeddingTable) -> dict[str, Tensor]:
        """The same, with vectors and states that have a shape and no numbers (device "meta"); `blocks` brings these."""
        blocks, state = self._blocks(), dict(self.parts)
        for name, column in self._columns.items():
            shape = self._num_rows, *column.shape[1:]
            if name in WIDE:
                state[name] = torch.empty(shape, dtype=column.dtype, device="meta")
            elif name != ROWS:
                state[name] = torch.empty(shape, dtype=column.dtype)
                for number, start in enumerate(blocks.starts):
                    values = blocks.filled(number, name, _fill_of(table, name))
                    state[name][start : start + len(values)] = values
        is_live = torch.ones(self._num_rows, dtype=torch.bool)
        is_live[self.parts["free"]] = False
        rows = is_live.nonzero().squeeze(1)
        return {**state, IDS: state[IDS][rows], ROWS: rows}

    def outline_of_none(self) -> dict[str, Tensor]:
        """`outline` without rows: the columns' types and widths, and what belongs to no row."""
        none = torch.empty(0, dtype=torch.int64)
        columns = {
            name: torch.empty(0, *column.shape[1:], dtype=column.dtype) for name, column in self._columns.items()
        }
        return {**self.parts, **columns, "free": none}

    @property
    def num_ids(self) -> int:
        """How many ids have a row."""
        return self._num_rows - len(self.parts["free"])

    def blocks(self, table: EmbeddingTable) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """The first row, and vectors and states from there on, of all rows in their order."""
        blocks = self._blocks()
        for number, start in enumerate(blocks.starts):
            yield start, {name: blocks.filled(number, name, _fill_of(table, name)) for name in WIDE}

    def as_base(self) -> tuple[TableDelta, dict[str, Rows]]:
        """The same as a base's, with empty columns, and what stands in their place; they last as long as the files."""
        blocks = self._blocks()
        cuts = blocks.live_cuts()
        rows = {
            name: Rows(column.dtype, (cuts[-1], *column.shape[1:]), partial(blocks.live, cuts, name), cuts)
            for name, column in self._columns.items()
        }
        empty = {name: torch.empty(0, *column.shape[1:], dtype=column.dtype) for name, column in rows.items()}
        ids, vectors, numbers = (empty.pop(name) for name in (IDS, "vectors", ROWS))
        parts = {name: Part(0, tail) for name, tail in self.parts.items()}
        state = RowState(self._num_rows, numbers, empty, parts)
        return TableDelta(ids, vectors, ids, dict(self._raw_ids), state, self.unknown), rows

    @property
    def _columns(self) -> Mapping[str, Rows]:
        return self._layers[0].columns

    def _blocks(self) -> "_Blocks":
        return _Blocks(self._layers, self._num_rows, self.parts["free"], part_of(self._memory_bytes))


class Folded:
    """A base and what was applied to it.

    Args:
        memory_bytes: for rows that are put together.

    Attributes:
        version: that it is at; None before the base.
        tables: by name.
        dense: all parameters.
        extra: of the last delta.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._memory_bytes = memory_bytes
        self.version: Version | None = None
        self.bundle = ""
        self.tables: Tables[FoldedTable] = Tables()
        self.dense: dict[str, Tensor] = {}
        self.extra: Mapping[str, Any] = {}

    def apply(self, delta: Delta) -> None:
        """Go on by a delta, whose rows may lie in its file.

        Raises:
            GapError: it does not follow the one before.
            DeltaError: it holds no state, or is of a table that is unknown.
        """
        if delta.since is None:
            self.tables = Tables({name: FoldedTable(name, self._memory_bytes) for name in delta.tables})
            self.dense, self.bundle = {}, delta.bundle
        elif delta.since != self.version:
            raise GapError(f"{delta.version} follows {delta.since}, but this is at {self.version}; apply those between")
        for number, (name, table) in enumerate(delta.tables.items()):
            self.tables[name].apply(table, delta.rows_of(number))
        self.dense |= delta.dense
        self.extra, self.version = delta.extra, delta.version

    def as_base(self) -> Delta:
        """All of it as a base of the same version, whose rows stay where they are."""
        assert self.version is not None
        tables, stored = {}, dict[str, Rows]()
        for number, (name, table) in enumerate(self.tables.items()):
            tables[name], rows = table.as_base()
            stored |= {row_key(number, column): values for column, values in rows.items()}
        return Delta(self.bundle, *self.version, None, tables, self.dense, self.extra, stored)


class _Layer:
    """The rows of one delta, and where in it each block begins."""

    def __init__(self, name: str, columns: Mapping[str, Rows]) -> None:
        self._name, self.columns = name, columns
        self._bounds: list[int] = []
        self._places: list[int] = []

    def places(self, bounds: list[int]) -> list[int]:
        """For each row number, ascending, how many of its rows are below."""
        if bounds != self._bounds:
            limits, below, last = torch.tensor(bounds), torch.zeros(len(bounds), dtype=torch.int64), -1
            for part in self.columns[ROWS].parts():
                if int(part[0]) <= last or bool((part[1:] <= part[:-1]).any()):
                    raise DeltaError(f"the rows of a delta of {self._name!r} do not ascend; it was written otherwise")
                below += torch.searchsorted(part, limits)
                last = int(part[-1])
            self._bounds, self._places = bounds, below.tolist()
        return self._places


class _Blocks:
    """Rows of a table in blocks of equally many row numbers."""

    def __init__(self, layers: list[_Layer], num_rows: int, free: Tensor, block_bytes: int) -> None:
        columns = layers[0].columns.values()
        row_bytes = sum(math.prod(column.shape[1:]) * column.dtype.itemsize for column in columns)
        step = max(1, block_bytes // max(1, row_bytes))
        self._layers = layers
        self._bounds = [*range(0, num_rows, step), num_rows]
        self._free = free.sort().values
        self._free_below: list[int] = torch.searchsorted(self._free, torch.tensor(self._bounds)).tolist()

    @property
    def starts(self) -> list[int]:
        """The first row of each block."""
        return self._bounds[:-1]

    def filled(self, number: int, name: str, fill: float | None) -> Tensor:
        """(N, …) a column of all rows of a block, free ones filled, if there is a number for it."""
        start, stop = self._bounds[number], self._bounds[number + 1]
        column = self._layers[0].columns[name]
        out = torch.zeros(stop - start, *column.shape[1:], dtype=column.dtype)
        for layer in self._layers:
            places = layer.places(self._bounds)
            first, last = places[number], places[number + 1]
            if last > first:
                rows = layer.columns[ROWS].read(first, last) - start
                out[rows] = layer.columns[name].read(first, last)
        if fill is not None:
            out[self._free_in(number)] = torch.tensor(fill, dtype=out.dtype)
        return out

    def live(self, cuts: list[int], name: str, start: int, stop: int) -> Tensor:
        """(stop - start, …) a column of the rows of a block that are not free, between two of `live_cuts`."""
        number = bisect_right(cuts, start) - 1
        assert (cuts[number], cuts[number + 1]) == (start, stop)
        first = self._bounds[number]
        is_live = torch.ones(self._bounds[number + 1] - first, dtype=torch.bool)
        is_live[self._free_in(number)] = False
        if name == ROWS:
            return is_live.nonzero().squeeze(1) + first
        return self.filled(number, name, None)[is_live]

    def live_cuts(self) -> list[int]:
        """How many rows before each block are not free, and how many there are."""
        return [bound - below for bound, below in zip(self._bounds, self._free_below, strict=True)]

    def _free_in(self, number: int) -> Tensor:
        """Free rows of a block, from its first row on."""
        return self._free[self._free_below[number] : self._free_below[number + 1]] - self._bounds[number]


def _fill_of(table: EmbeddingTable, name: str) -> float | None:
    column = table.pages.columns.get(name)
    return None if column is None or name == IDS else column.fill

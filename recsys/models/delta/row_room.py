"""Where copies of a table's rows lie until they are written: in memory, or in a file without a name."""

import weakref
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.row_pages.column import Column
from recsys.models.delta.rows import Rows, rows_by


class RowRoom(Protocol):
    """Columns of so many rows."""

    def put(self, places: Tensor | slice, values: Mapping[str, Tensor]) -> None:
        """All columns (N, width) of rows at N places, ascending; each row is put once."""

    def columns(self) -> dict[str, Tensor | Rows]:
        """All by name, for the CPU, once all rows are there."""


class MemoryRoom:
    """In memory, where the table's columns are.

    Args:
        columns: of the table, by name.
        num_rows: how many rows.
    """

    def __init__(self, columns: Mapping[str, Column], num_rows: int) -> None:
        self._columns = {name: _room(num_rows, column) for name, column in columns.items()}

    def put(self, places: Tensor | slice, values: Mapping[str, Tensor]) -> None:
        """All columns (N, width) of rows at N places, ascending; each row is put once."""
        for name, column in self._columns.items():
            column[places] = values[name]

    def columns(self) -> dict[str, Tensor | Rows]:
        """All by name, on the CPU, once all rows are there."""
        return {name: values.cpu() for name, values in self._columns.items()}


class FileRoom:
    """In a file, column after column, each in the order in which rows were put: one write a column for all of a call.

    What is read is put in the order of its rows; of each call that put some of them, it is one piece of the file.
    One thread at a time.

    Args:
        columns: of the table, by name.
        num_rows: how many rows.
        file: of `room_bytes`; it is closed when the room is let go.
        part_bytes: are read from it in one go when it is written.
    """

    def __init__(self, columns: Mapping[str, Column], num_rows: int, file: BinaryIO, part_bytes: int) -> None:
        self._file, self._num_rows, self._part_bytes = file, num_rows, part_bytes
        weakref.finalize(self, file.close)
        self._columns, self._starts, at = columns, dict[str, int](), 0
        for name, column in columns.items():
            self._starts[name] = at
            at += num_rows * _row_bytes(column)
        self._slots = torch.empty(num_rows, dtype=torch.int32)  # of each row, in its column
        self._end = 0

    def put(self, places: Tensor | slice, values: Mapping[str, Tensor]) -> None:
        """All columns (N, width) of rows at N places, ascending; each row is put once."""
        end = self._end + len(values["vectors"])
        assert end <= self._num_rows, (end, self._num_rows)
        for name, column in self._columns.items():
            if column.width:
                self._seek(name, self._end)
                self._file.write(_bytes_of(values[name]))
        self._slots[places.cpu() if isinstance(places, Tensor) else places] = torch.arange(
            self._end, end, dtype=torch.int32
        )
        self._end = end

    def columns(self) -> dict[str, Tensor | Rows]:
        """All by name, once all rows are there; they lie in the file."""
        assert self._end == self._num_rows, (self._end, self._num_rows)
        return {
            name: rows_by(self._part_bytes, column.dtype, (self._num_rows, column.width), partial(self._read, name))
            for name, column in self._columns.items()
        }

    def _read(self, name: str, start: int, stop: int) -> Tensor:
        column = self._columns[name]
        out = torch.empty(stop - start, column.width, dtype=column.dtype)
        if out.numel():
            slots, order = self._slots[start:stop].sort()
            edges = [0, *((slots.diff() != 1).nonzero().squeeze(1) + 1).tolist(), len(slots)]
            for first, last in pairwise(edges):
                self._seek(name, int(slots[first]))
                found = self._file.readinto(_bytes_of(out[first:last]))  # type: ignore[attr-defined]  # files that are open to read have it
                assert found == out[first:last].nbytes, (found, out[first:last].nbytes)
            if not torch.equal(slots, self._slots[start:stop]):
                out = torch.empty_like(out).index_copy_(0, order, out)
        return out

    def _seek(self, name: str, slot: int) -> None:
        self._file.seek(self._starts[name] + slot * _row_bytes(self._columns[name]))


def room_bytes(columns: Mapping[str, Column], num_rows: int) -> int:
    """Of so many rows."""
    return num_rows * sum(_row_bytes(column) for column in columns.values())


def _row_bytes(column: Column) -> int:
    return column.width * column.dtype.itemsize


def _bytes_of(values: Tensor) -> memoryview:
    return values.cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _room(num_rows: int, column: Column) -> Tensor:
    """(num_rows, width); numpy asks for large pages of memory, so that the first write to it does not wait for each."""
    if column.device.type != "cpu":
        return torch.empty(num_rows, column.width, dtype=column.dtype, device=column.device)
    return torch.from_numpy(np.empty((num_rows, column.width), dtype=torch.empty(0, dtype=column.dtype).numpy().dtype))

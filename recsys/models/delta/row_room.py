"""Where copies of a table's rows lie until they are written: in memory, or in a file without a name."""

import weakref
from collections.abc import Mapping
from functools import partial
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.row_pages.column import Column
from recsys.models.delta.rows import Rows, rows_by


class RowRoom(Protocol):
    """Columns of so many rows."""

    def put(self, name: str, start: int, values: Tensor) -> None:
        """Rows (N, width) from `start` on."""

    def put_at(self, name: str, places: Tensor, values: Tensor) -> None:
        """Rows (N, width) at places (N,) int64, ascending."""

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows from `start` to `stop`, on the CPU or where `put` had them."""

    def columns(self) -> dict[str, Tensor | Rows]:
        """All by name, for the CPU."""


class MemoryRoom:
    """In memory, where the table's columns are.

    Args:
        columns: of the table, by name.
        num_rows: how many rows.
    """

    def __init__(self, columns: Mapping[str, Column], num_rows: int) -> None:
        self._columns = {name: _room(num_rows, column) for name, column in columns.items()}

    def put(self, name: str, start: int, values: Tensor) -> None:
        """Rows (N, width) from `start` on."""
        self._columns[name][start : start + len(values)] = values

    def put_at(self, name: str, places: Tensor, values: Tensor) -> None:
        """Rows (N, width) at places (N,) int64, ascending."""
        self._columns[name][places] = values

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows from `start` to `stop`."""
        return self._columns[name][start:stop]

    def columns(self) -> dict[str, Tensor | Rows]:
        """All by name, on the CPU."""
        return {name: values.cpu() for name, values in self._columns.items()}


class FileRoom:
    """In a file, column after column. One thread at a time.

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

    def put(self, name: str, start: int, values: Tensor) -> None:
        """Rows (N, width) from `start` on."""
        self._file.seek(self._starts[name] + start * _row_bytes(self._columns[name]))
        self._file.write(_bytes_of(values))

    def put_at(self, name: str, places: Tensor, values: Tensor) -> None:
        """Rows (N, width) at places (N,) int64, ascending."""
        edges = (places[1:] != places[:-1] + 1).nonzero().squeeze(1) + 1
        bounds = [0, *edges.tolist(), len(places)]
        values = values.cpu()
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):
            if last > first:
                self.put(name, int(places[first]), values[first:last])

    def read(self, name: str, start: int, stop: int) -> Tensor:
        """Rows from `start` to `stop`."""
        column = self._columns[name]
        out = torch.empty(stop - start, column.width, dtype=column.dtype)
        if out.numel():
            self._file.seek(self._starts[name] + start * _row_bytes(column))
            found = self._file.readinto(_bytes_of(out))  # type: ignore[attr-defined]  # files that are open to read have it
            assert found == out.nbytes, (found, out.nbytes)
        return out

    def columns(self) -> dict[str, Tensor | Rows]:
        """All by name; they lie in the file."""
        return {
            name: rows_by(self._part_bytes, column.dtype, (self._num_rows, column.width), partial(self.read, name))
            for name, column in self._columns.items()
        }


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

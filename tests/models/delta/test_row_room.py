"""Copies of rows in memory and in a file."""

import io
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from recsys.kernels.row_pages import RowOptimizer, RowPages
from recsys.kernels.row_pages.column import Column
from recsys.models.delta.row_copy import columns_of
from recsys.models.delta.row_room import FileRoom, MemoryRoom, RowRoom, room_bytes
from recsys.models.delta.rows import Rows

SIZE = 63


class CountedFile(io.BytesIO):
    """In memory; remembers how many bytes each call wrote, and how many calls read."""

    def __init__(self, size: int) -> None:
        super().__init__(bytes(size))
        self.size, self.writes, self.reads = size, list[int](), 0

    def write(self, content: memoryview) -> int:  # type: ignore[override]  # narrower: what a room writes
        self.writes.append(len(content))
        return super().write(content)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # narrower: what a room reads to
        self.reads += 1
        return super().readinto(buffer)


def columns(optimizer: str) -> Mapping[str, Column]:
    return columns_of(RowPages(3, RowOptimizer(optimizer), page_rows=8, are_counted=True))  # type: ignore[arg-type]  # a text


def values_of(columns: Mapping[str, Column]) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: torch.randint(-99, 99, (SIZE, column.width), generator=draw).to(column.dtype)
        for name, column in columns.items()
    }


def put(room: RowRoom, places: Tensor | slice, values: Mapping[str, Tensor]) -> None:
    room.put(places, {name: value[places] for name, value in values.items()})


@pytest.mark.parametrize("part_bytes", [1, 100, 10_000])
@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])  # sgd: a state of no numbers
def test_what_is_put_is_there_in_its_place(optimizer: str, is_file: bool, part_bytes: int) -> None:
    kinds = columns(optimizer)
    room: RowRoom = MemoryRoom(kinds, SIZE)
    if is_file:
        room = FileRoom(kinds, SIZE, CountedFile(room_bytes(kinds, SIZE)), part_bytes)
    held = values_of(kinds)
    scattered = torch.tensor([0, 3, 4, 5, 17, 61, 62])
    put(room, slice(10, 17), held)
    put(room, scattered, held)
    put(room, scattered[:0], held)
    rest = torch.ones(SIZE, dtype=torch.bool)
    rest[10:17] = rest[scattered] = False
    put(room, rest.nonzero().squeeze(1), held)
    found = {name: value.loaded() if isinstance(value, Rows) else value for name, value in room.columns().items()}
    assert found.keys() == held.keys() == {"vectors", "states", "counts"}
    for name, values in held.items():
        assert torch.equal(found[name], values), name
        assert found[name].dtype == values.dtype


def test_rows_of_one_call_lie_one_after_another_in_a_file_that_they_fill() -> None:
    kinds = columns("adam")
    file = CountedFile(room_bytes(kinds, SIZE))
    room, held = FileRoom(kinds, SIZE, file, 1 << 20), values_of(kinds)
    put(room, torch.arange(0, SIZE, 2), held)
    put(room, torch.arange(1, SIZE, 2), held)
    assert len(file.writes) == 2 * len(kinds)
    assert sum(file.writes) == file.size == len(file.getvalue())
    read = {name: value.loaded() for name, value in room.columns().items() if isinstance(value, Rows)}
    assert file.reads == len(kinds)
    assert all(torch.equal(read[name], held[name]) for name in held)


def test_a_file_is_closed_when_its_room_is_let_go() -> None:
    kinds = columns("sgd")
    file = CountedFile(room_bytes(kinds, SIZE))
    room = FileRoom(kinds, SIZE, file, 100)
    put(room, slice(0, SIZE), values_of(kinds))
    rows = room.columns()
    del room
    assert not file.closed
    rows.clear()
    assert file.closed

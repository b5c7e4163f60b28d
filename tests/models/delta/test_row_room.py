"""Copies of rows in memory and in a file."""

import io

import pytest
import torch

from recsys.kernels.row_pages import RowOptimizer, RowPages
from recsys.models.delta.row_copy import columns_of
from recsys.models.delta.row_room import FileRoom, MemoryRoom, RowRoom, room_bytes
from recsys.models.delta.rows import Rows


@pytest.mark.parametrize("is_file", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])  # sgd: a state of no numbers
def test_what_is_put_is_there(is_file: bool, optimizer: str) -> None:
    columns = columns_of(RowPages(3, RowOptimizer(optimizer), page_rows=8, are_counted=True))  # type: ignore[arg-type]  # a text
    size = 63
    room: RowRoom = MemoryRoom(columns, size)
    if is_file:
        room = FileRoom(columns, size, io.BytesIO(bytes(room_bytes(columns, size))), 100)
    draw = torch.Generator().manual_seed(0)
    held = {
        name: torch.randint(-9, 9, (size, column.width), generator=draw).to(column.dtype)
        for name, column in columns.items()
    }
    for name, values in held.items():
        room.put(name, 0, values[:20])
        room.put(name, 20, values[20:])
        places = torch.tensor([0, 3, 4, 5, 17, 62])
        values[places] += 1
        room.put_at(name, places, values[places])
        room.put_at(name, places[:0], values[:0])
        assert torch.equal(room.read(name, 2, 19), values[2:19])
    found = {name: value.loaded() if isinstance(value, Rows) else value for name, value in room.columns().items()}
    assert found.keys() == held.keys() == {"vectors", "states", "counts"}
    for name, values in held.items():
        assert torch.equal(found[name], values), name
        assert found[name].dtype == values.dtype

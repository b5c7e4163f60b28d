"""Rows are copied as they stood at one moment, and a step copies its own rows alone."""

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from recsys.kernels.row_pages import RowOptimizer, RowPages
from recsys.models.delta.row_copy import RowCopy, columns_of
from recsys.models.delta.row_room import FileRoom, RowRoom, room_bytes
from recsys.models.delta.rows import Rows

SIZE, WIDTH = 1000, 3
ROWS = torch.arange(SIZE)[torch.arange(SIZE) % 7 != 3]  # of the table, that are copied

Room = Callable[[RowPages], RowRoom | None]


class CountedFile(io.BytesIO):
    """In memory; remembers how many bytes each call wrote."""

    def __init__(self, size: int) -> None:
        super().__init__(bytes(size))
        self.writes = list[int]()

    def write(self, content: memoryview) -> int:  # type: ignore[override]  # narrower: what a room writes
        self.writes.append(len(content))
        return super().write(content)


def table() -> RowPages:
    pages = RowPages(WIDTH, RowOptimizer("adam"), page_rows=16, are_counted=True)
    pages.grow(SIZE)
    pages.begin(torch.arange(SIZE), torch.arange(SIZE), 0, 1.0, 1)
    return pages


def file_of(pages: RowPages) -> tuple[CountedFile, FileRoom]:
    columns = columns_of(pages)
    file = CountedFile(room_bytes(columns, len(ROWS)))
    return file, FileRoom(columns, len(ROWS), file, 500)


def step(pages: RowPages, rows: Tensor) -> None:
    pages.update(rows, torch.ones(len(rows), WIDTH), 0.1, 2)


def held(pages: RowPages) -> dict[str, Tensor]:
    return {name: column.gather(ROWS).clone() for name, column in columns_of(pages).items()}


def loaded(copy: RowCopy) -> dict[str, Tensor]:
    return {name: value.loaded() if isinstance(value, Rows) else value for name, value in copy.finished().items()}


@pytest.mark.parametrize("part_bytes", [1, 500, 1 << 20])
@pytest.mark.parametrize("room", [lambda _: None, lambda pages: file_of(pages)[1]], ids=["memory", "file"])
def test_steps_between_never_change_what_is_copied(room: Room, part_bytes: int) -> None:
    pages, draw = table(), torch.Generator().manual_seed(0)
    expected = held(pages)
    copy = RowCopy(pages, ROWS, room(pages), part_bytes)
    copy.begin()
    while not copy.is_done:
        step(pages, torch.randint(0, SIZE, (40,), generator=draw))
        assert copy.copy(90) in (90, len(ROWS) % 90)
        step(pages, torch.randint(0, SIZE, (40,), generator=draw))
    assert pages.before_write is None
    assert not torch.equal(held(pages)["vectors"], expected["vectors"])
    found = loaded(copy)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(found[name], values), name


def test_a_step_writes_its_own_rows_to_a_file_once_a_column_whatever_earlier_steps_wrote() -> None:
    pages, draw = table(), torch.Generator().manual_seed(0)
    file, room = file_of(pages)
    copy = RowCopy(pages, ROWS, room, part_bytes=500)
    copy.begin()
    columns, is_copied = columns_of(pages), torch.zeros(SIZE, dtype=torch.bool)
    is_copied[torch.arange(SIZE) % 7 == 3] = True  # no rows of the cut
    for _ in range(30):
        rows = torch.randint(0, SIZE, (64,), generator=draw)
        own = int((~is_copied[torch.unique(rows)]).sum())
        file.writes.clear()
        step(pages, rows)
        assert file.writes == [room_bytes({name: column}, own) for name, column in columns.items() if own]
        is_copied[rows] = True
    file.writes.clear()
    copy.copy(len(ROWS))
    assert sum(file.writes) == room_bytes(columns, int((~is_copied).sum()))  # what steps wrote is not written again

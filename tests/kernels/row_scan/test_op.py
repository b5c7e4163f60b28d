"""Rows within bounds of their last touch: both paths against the definition, one row at a time."""

import pytest
import torch

from recsys.kernels.row_pages import RowOptimizer, RowPages, column
from recsys.kernels.row_scan import Place, lowest, scan_rows
from recsys.kernels.row_scan import op as scans
from recsys.kernels.row_scan.op import BEGIN, MOST_KEY


@pytest.fixture(params=["numba", "torch"], autouse=True)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column, "has_numba", lambda: request.param == "numba")


def filled(num_rows: int, generator: torch.Generator, most_tick: int = 30) -> RowPages:
    """Rows with random ticks, some of them free, and random counts."""
    pages = RowPages(2, RowOptimizer("sgd"), page_rows=8, are_counted=True)
    pages.grow(num_rows)
    rows = torch.arange(num_rows)
    pages.ticks.put(rows, torch.randint(-1, most_tick, (num_rows, 1), generator=generator))
    assert pages.counts is not None
    pages.counts.put(rows, torch.randint(0, 4, (num_rows, 1), generator=generator))
    return pages


def by_hand(
    pages: RowPages, by_count: bool, start: int, stop: int, before: int, after: Place, below: int
) -> list[tuple[int, int]]:
    found = []
    for row in range(start, stop):
        tick = int(pages.ticks.pages[row // 8][row % 8])
        assert pages.counts is not None
        key = tick + (int(pages.counts.pages[row // 8][row % 8]) * 2**31 if by_count else 0)
        if 0 <= tick < before and (key, row) > tuple(after) and key < below:
            found.append((row, key))
    return found


@pytest.mark.parametrize("by_count", [False, True])
@pytest.mark.parametrize("num_rows", [1, 7, 8, 17, 63, 1000])
def test_rows_within_bounds_are_found(num_rows: int, by_count: bool) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    for case in range(20):
        pages = filled(num_rows, generator)
        start, stop = sorted(torch.randint(0, num_rows + 1, (2,), generator=generator).tolist())
        key, row, before = torch.randint(-1, 33, (3,), generator=generator).tolist()
        after = BEGIN if case % 3 == 0 else Place(key, row)
        below = MOST_KEY if case % 2 == 0 else 2**31 + 20 if by_count else 20
        counts = pages.counts if by_count else None
        rows, keys, end = scan_rows(pages.ticks, counts, start, stop, before=before, after=after, below=below)
        wanted = by_hand(pages, by_count, start, stop, before, after, below)
        assert (list(zip(rows.tolist(), keys.tolist(), strict=True)), end) == (wanted, stop)


def test_a_search_that_ends_early_goes_on_where_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "PART_ROWS", 10)
    pages = filled(200, torch.Generator().manual_seed(0))
    whole = scan_rows(pages.ticks, None, 3, 190, before=25)[0]
    for most in (1, 5, 400):
        found, at, searches = [], 3, 0
        while at < 190:
            rows, _, at = scan_rows(pages.ticks, None, at, 190, before=25, most=most)
            found.append(rows)
            searches += 1
        assert torch.equal(torch.cat(found), whole)
        assert most == 400 or searches > 10


def test_the_largest_tick_and_count_are_keys_too() -> None:
    pages = filled(2, torch.Generator())
    assert pages.counts is not None
    pages.ticks.put(torch.arange(2), torch.tensor([[2**31 - 2], [5]]))
    pages.counts.put(torch.arange(2), torch.tensor([[3], [2**31 - 1]]))
    rows, keys, _ = scan_rows(pages.ticks, pages.counts, 0, 2, before=2**31 - 1)
    assert rows.tolist() == [0, 1]
    assert keys.tolist() == [3 * 2**31 + 2**31 - 2, (2**31 - 1) * 2**31 + 5]


def test_rows_without_memory_are_free() -> None:
    pages = filled(16, torch.Generator().manual_seed(1))
    rows, keys, end = scan_rows(pages.ticks, None, 0, 40, before=30)
    assert (rows.tolist(), end) == ([row for row, _ in by_hand(pages, False, 0, 16, 30, BEGIN, MOST_KEY)], 40)
    assert len(rows) == len(keys)
    assert [
        part.tolist() if isinstance(part, torch.Tensor) else part
        for part in scan_rows(pages.ticks, None, 20, 40, before=30)
    ] == [[], [], 40]


@pytest.mark.parametrize("size", [0, 1, 17, 1000])
def test_the_lowest_keys_are_kept_and_of_the_same_ones_the_first(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    rows, keys = torch.arange(size) * 3, torch.randint(0, 40, (size,), generator=generator)
    for count in (1, 5, 16, 999, 1000):
        first = sorted(sorted(zip(keys.tolist(), rows.tolist(), strict=True))[:count], key=lambda pair: pair[1])
        kept, their = lowest(rows, keys, count)
        assert list(zip(their.tolist(), kept.tolist(), strict=True)) == first

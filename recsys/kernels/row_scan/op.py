"""Rows whose last touch lies within bounds, read where they lie: no column is copied.

    key(row) = tick                  without counts
    key(row) = count * 2^31 + tick   with them
    found    = rows with 0 <= tick < before, (key, row) > after and key < below, ascending

On a CPU with numba by one kernel, else by torch, a part of the rows at a time; both find the same.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsys.kernels.row_pages.column import is_compiled

if TYPE_CHECKING:
    from recsys.kernels.row_pages.column import Column

COUNT_SHIFT = 31  # a tick has so many bits
MOST_KEY = 2**63 - 1
PART_ROWS = 1 << 20  # that torch looks at in one go


class Place(NamedTuple):
    """A place in the order of keys, and of rows where the key is the same."""

    key: int
    row: int


BEGIN = Place(-1, -1)  # before all rows


def scan_rows(
    ticks: "Column",
    counts: "Column | None",
    start: int,
    stop: int,
    *,
    before: int,
    after: Place = BEGIN,
    below: int = MOST_KEY,
    most: int | None = None,
) -> tuple[Tensor, Tensor, int]:
    """(M,) int64 rows from `start` to `stop` that lie within the bounds, ascending, and their keys (M,) int64.

    Args:
        ticks: int32, -1 where a row is free.
        counts: int32, for keys that begin with them.
        start, stop: rows; those for which there is no memory are free.
        before: of ticks, the first that is not looked for.
        after: no row up to this place is looked for.
        below: nor is one with this key, or a higher one.
        most: so many that the search may end with, 1 or more; None: it goes on to `stop`.

    Returns:
        Rows, keys, and the first row that was not looked at.
    """
    have_memory = min(stop, len(ticks.pages) << ticks.log_page)
    if start >= have_memory:
        none = torch.empty(0, dtype=torch.int64, device=ticks.device)
        return none, none, stop
    if is_compiled(ticks.device):
        from recsys.kernels.row_scan import numba_scan

        rows, keys, end = numba_scan.scan(ticks, counts, start, have_memory, before, after, below, most)
    else:
        end = min(have_memory, start + PART_ROWS) if most is not None else have_memory
        rows, keys = _by_torch(ticks, counts, start, end, before, after, below)
    return rows, keys, stop if end == have_memory else end


def lowest(rows: Tensor, keys: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` of ascending rows (N,) in the order of keys (N,), then rows; they stay ascending."""
    if len(rows) <= count:
        return rows, keys
    limit = _kth(keys, count)
    is_kept = keys < limit
    ties = (keys == limit).nonzero().squeeze(1)
    is_kept[ties[: count - int(is_kept.sum())]] = True
    return rows[is_kept], keys[is_kept]


def _kth(keys: Tensor, count: int) -> int:
    """The `count`-th lowest key. On a CPU kthvalue takes a time that is quadratic where keys descend."""
    if keys.device.type != "cpu":
        return int(keys.kthvalue(count).values)
    return int(np.partition(keys.numpy(), count - 1)[count - 1])


def _by_torch(
    ticks: "Column", counts: "Column | None", start: int, stop: int, before: int, after: Place, below: int
) -> tuple[Tensor, Tensor]:
    touched = _part_of(ticks, start, stop)
    rows = ((touched >= 0) & (touched < before)).nonzero().squeeze(1)
    keys = touched[rows].long()
    if counts is not None:
        keys |= _part_of(counts, start, stop)[rows].long() << COUNT_SHIFT
    rows += start
    is_found = (keys < below) & ((keys > after.key) | ((keys == after.key) & (rows > after.row)))
    return rows[is_found], keys[is_found]


def _part_of(column: "Column", start: int, stop: int) -> Tensor:
    """(stop - start,) numbers of rows."""
    first, last = start >> column.log_page, (stop - 1) >> column.log_page
    begin = first << column.log_page
    parts = [page.view(-1) for page in column.pages[first : last + 1]]
    parts[-1] = parts[-1][: stop - (last << column.log_page)]
    parts[0] = parts[0][start - begin :]
    return torch.cat(parts)

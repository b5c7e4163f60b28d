"""An index of ids in sorted runs, by torch alone: for machines without numba.

Every call's new ids become a run; a run joins the one before it until each is at least twice as long as the next. So an
id is moved about log2 of the number of ids times, and looked for in as many runs, by bisection.
"""

import torch
from torch import Tensor


class SortedIndex:
    """Rows by id."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._runs: list[tuple[Tensor, Tensor]] = []  # ids that ascend, and their rows; -1 where an id was erased

    @property
    def num_bytes(self) -> int:
        """Memory of the index."""
        return sum(ids.nbytes + rows.nbytes for ids, rows in self._runs)

    def gauges(self) -> dict[str, float]:
        """A look-up bisects each run."""
        return {"load": 1.0, "mean_probe": float(len(self._runs)), "max_probe": float(len(self._runs))}

    def find(self, ids: Tensor) -> Tensor:
        """(N,) row of each id, -1 for one that is not there."""
        found = torch.full_like(ids, -1)
        for known, rows in self._runs:
            places, is_here = _places(known, rows, ids)
            found = torch.where(is_here, rows[places], found)
        return found

    def claim(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) row of each id, and the (M,) places where the ids stand first that were not there, ascending.

        The row of an id that was not there is -(j + 2), where j is its first place.
        """
        found = self.find(ids)
        unknown = (found < 0).nonzero().squeeze(1)
        first = unknown[first_places(ids[unknown])]
        found[unknown] = -2 - first
        return found, unknown[first == unknown]

    def settle(self, ids: Tensor, found: Tensor, firsts: Tensor, rows: Tensor) -> None:
        """Give the claimed ids ids[firsts] their rows, -1 for those to be forgotten, and write them to `found`."""
        found[firsts] = rows
        again = (found < -1).nonzero().squeeze(1)
        found[again] = found[-2 - found[again]]
        firsts, rows = firsts[rows >= 0], rows[rows >= 0]
        if len(firsts) == 0:
            return
        known, order = ids[firsts].sort()
        self._runs.append((known, rows[order]))
        while len(self._runs) > 1 and len(self._runs[-2][0]) < 2 * len(self._runs[-1][0]):
            self._runs.append(_joined(self._runs.pop(), self._runs.pop()))

    def insert(self, ids: Tensor, free_rows: Tensor, next_row: int, room: int) -> None:
        """Claim and settlement are no slower."""

    def erase(self, ids: Tensor) -> Tensor:
        """(N,) row that each id had, -1 for one that was not there, or that stands in the call before."""
        erased = torch.full_like(ids, -1)
        firsts = (first_places(ids) == torch.arange(len(ids), device=self._device)).nonzero().squeeze(1)
        for number, (known, rows) in enumerate(self._runs):
            places, is_here = _places(known, rows, ids[firsts])
            erased[firsts[is_here]] = rows[places[is_here]]
            rows[places[is_here]] = -1
            if 2 * int((rows < 0).sum()) > len(rows):
                self._runs[number] = known[rows >= 0], rows[rows >= 0]
        self._runs = [run for run in self._runs if len(run[0])]
        return erased

    def export(self) -> tuple[Tensor, Tensor]:
        """All ids, and their rows, in the order of the rows."""
        none = torch.empty(0, dtype=torch.int64, device=self._device)
        ids, rows = (torch.cat([none, *(run[side] for run in self._runs)]) for side in (0, 1))
        ids, rows = ids[rows >= 0], rows[rows >= 0]
        order = rows.argsort()
        return ids[order], rows[order]


def first_places(ids: Tensor) -> Tensor:
    """(N,) the place where each id stands first."""
    ordered, order = ids.sort(stable=True)
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    places = torch.empty_like(ids)
    places[order] = order[is_first][is_first.cumsum(0) - 1]
    return places


def _places(known: Tensor, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Where ids would stand in a run, and whether they do."""
    places = torch.searchsorted(known, ids).clamp_(max=len(known) - 1)
    return places, (known[places] == ids) & (rows[places] >= 0)


def _joined(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    ids, rows = (torch.cat(both) for both in zip(first, second, strict=True))
    ids, order = ids[rows >= 0].sort()
    return ids, rows[rows >= 0][order]

"""Exact ranks of dot products, nearly all of them decided in float32.

A score is s = fl32(sum_d h_d w_d), the sum in float64. The float32 product S of the same vectors differs from it by at
most

    bound = (D + 8) u / (1 - (D + 8) u) |h| |w|_max + tiny,    u = 2^-24

whatever the order of its sums (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 3.1, and
Cauchy-Schwarz; the 8 covers the rounding of s and of vectors given in float64, `tiny` what underflows). So an item with
S > target + bound is above, one with S < target - bound is below, and only what lies between is scored again in
float64, in a fixed order of additions: nothing depends on how many rows are scored at a time, nor on threads.

Items are sorted by norm and scored a block at a time, so that the scores of a block stay in the cache and |w|_max is
that of the block. Rows or items so large that float32 could overflow are not screened: `screens` tells.

Dims: B rows (states), R targets of all rows, V items, D width, C cells (row, item), M items of a block. A line is a row
with at most TARGETS_PER_LINE of its targets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_ITEMS = 1024
LINES_AT_ONCE = 256  # scored together: 1 MiB of scores, and as much beside them
LINES_PER_PART = 4096  # whose undecided items are scored again together
TARGETS_PER_LINE = 8  # that share one row of scores
LARGEST_NORM = 2.0**60  # of a state and of an item: their products then stay far from the end of float32
_UNIT = 2.0**-24
_SMALLEST = 2.0**-126
_PAIRS_AT_ONCE = 262_144


class Cells(NamedTuple):
    """Pairs of a row number and an item index, (C,) int64 each."""

    row: Tensor
    item: Tensor


@dataclass(frozen=True)
class _Block:
    vectors: Tensor  # (M, D) float32
    norm: float  # of the longest of them
    first: int  # place of its first item


class ScreenedItems:
    """Item vectors, made ready to rank: those that may be recommended, by norm.

    Args:
        vectors: (V+1, D) float32 or float64.
        is_candidate: (V+1,) bool; row 0 is never one.

    Raises:
        ValueError: shapes that do not fit.
    """

    def __init__(self, vectors: Tensor, is_candidate: Tensor, *, block_items: int = BLOCK_ITEMS) -> None:
        if vectors.ndim != 2 or is_candidate.shape != vectors.shape[:1]:
            raise ValueError(f"vectors {tuple(vectors.shape)} and is_candidate {tuple(is_candidate.shape)} do not fit")
        self.vectors, self.block_items = vectors, block_items
        self.width = vectors.shape[1]
        is_candidate = is_candidate.to(vectors.device).clone()
        is_candidate[0] = False
        norms = torch.linalg.vector_norm(vectors.double(), dim=1)  # (V+1,)
        # Every item counts here, recommended or not: a NaN anywhere is a failure that the plain path reports.
        self.can_screen = bool((norms[1:] <= LARGEST_NORM).all())
        ids = torch.nonzero(is_candidate).flatten()
        self.item_ids = ids[torch.argsort(norms[ids], stable=True)]  # (V',) by place
        self.place = torch.full((len(vectors),), -1, dtype=torch.int64, device=vectors.device)
        self.place[self.item_ids] = torch.arange(len(self.item_ids), device=vectors.device)
        self.blocks = list(self._blocks(norms, block_items)) if self.can_screen else []

    def screens(self, states: Tensor) -> Tensor:
        """(B,) bool: is the bound proven for this row?"""
        if not self.can_screen:
            return torch.zeros(len(states), dtype=torch.bool, device=states.device)
        return torch.linalg.vector_norm(states.double(), dim=1) <= LARGEST_NORM

    def exact_scores(self, states: Tensor, row: Tensor, item: Tensor) -> Tensor:
        """(C,) float32: the score of each pair, summed in float64 over d = 0, 1, ..., D-1."""
        scores = torch.empty(len(row), dtype=torch.float32, device=states.device)
        for first in range(0, len(row), _PAIRS_AT_ONCE):
            part = slice(first, first + _PAIRS_AT_ONCE)
            left, right = states[row[part]].double().T.contiguous(), self.vectors[item[part]].double().T.contiguous()
            total = left[0] * right[0]
            for d in range(1, self.width):
                total += left[d] * right[d]
            scores[part] = total.float()
        return scores

    def bound(self, state_norms: Tensor, item_norm: float) -> Tensor:
        """(B,) float64: how far a float32 product may lie from the score, for items up to this norm."""
        terms = (self.width + 8) * _UNIT
        tiny = _SMALLEST * (4 * self.width + 16) * (1.0 + item_norm + state_norms)
        return terms / (1.0 - terms) * state_norms * item_norm + tiny

    def _blocks(self, norms: Tensor, block_items: int) -> Iterator[_Block]:
        vectors = self.vectors.float()
        for first in range(0, len(self.item_ids), block_items):
            ids = self.item_ids[first : first + block_items]
            yield _Block(vectors[ids].contiguous(), float(norms[ids].max()), first)


@contextmanager
def full_float32() -> Iterator[None]:
    """True float32 products inside: for these the bound is proven. torch may have been told to take shorter ones."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def count_above(
    items: ScreenedItems, states: Tensor, row: Tensor, target: Tensor, hidden: Cells
) -> tuple[Tensor, Tensor]:
    """How many candidates score above each target, and how many others score the same.

    Args:
        items: the candidates.
        states: (B, D), each with `items.screens(states)`.
        row: (R,) int64, ascending: the state that each target belongs to.
        target: (R,) int64 item indices.
        hidden: candidates to leave out, rows ascending.

    Returns:
        Above (R,) int64 and equal (R,) int64, the target itself left out.

    Raises:
        ValueError: outside of `full_float32()` where torch takes shorter products.
    """
    if torch.get_float32_matmul_precision() != "highest":
        raise ValueError(
            f"float32_matmul_precision={torch.get_float32_matmul_precision()}: wanted highest; call in full_float32()"
        )
    above, equal = torch.zeros_like(target), torch.zeros_like(target)
    for part, line, state_of_line in _lines(row):
        order, starts = _layers(line)
        numbers = torch.arange(part.start, part.stop, device=row.device)[order]
        cells = _take(hidden, state_of_line, len(states))
        counter = _Counter(items, states[state_of_line], line[order], target[numbers], starts)
        for block, in_block in zip(items.blocks, _by_block(items, cells), strict=True):
            counter.count(block, in_block)
        above[numbers], equal[numbers] = counter.settle()
    return above, equal


class _Counter:
    """Counts one block of items after the other.

    The targets stand layer by layer: the first target of every line, then the second of every line that has two, ...;
    lines with more targets come first, so that a layer is a run of lines. `starts` are the layers' first targets.
    """

    def __init__(self, items: ScreenedItems, states: Tensor, line: Tensor, target: Tensor, starts: list[int]) -> None:
        self.items, self.line, self.target, self.starts = items, line, target, starts
        self.states, self.single = states, states.float()
        self.scores = items.exact_scores(states, line, target)  # (R,)
        self.norms = torch.linalg.vector_norm(states.double(), dim=1)[line]  # (R,)
        self.above = torch.zeros_like(target)
        self.between: list[tuple[Tensor, Tensor]] = []  # number of the target, place of the item
        self._low, self._high = (states.new_empty(len(target), dtype=torch.float32) for _ in range(2))
        size = min(len(states), LINES_AT_ONCE) * max((len(block.vectors) for block in items.blocks), default=0)
        self._buffers = [states.new_empty(size, dtype=torch.float32) for _ in range(3)]

    def count(self, block: _Block, hidden: Cells) -> None:
        """Add the items of this block; `hidden` is by line, with columns of the block in place of items."""
        margin = self.items.bound(self.norms, block.norm)  # (R,)
        low, high = _outward(self.scores.double() - margin, self.scores.double() + margin)
        firsts = list(range(0, len(self.single), LINES_AT_ONCE))
        bounds = torch.searchsorted(hidden.row, torch.tensor([*firsts, len(self.single)]).to(hidden.row)).tolist()
        for first, cells in zip(firsts, itertools.pairwise(bounds), strict=True):
            states = self.single[first : first + LINES_AT_ONCE]
            scores = torch.mm(states, block.vectors.T, out=self._buffer(0, len(states), block))
            if cells[1] > cells[0]:
                scores[hidden.row[slice(*cells)] - first, hidden.item[slice(*cells)]] = -torch.inf
            self._count_lines(first, scores, low, high, block)
        undecided = torch.nonzero(self._low != self._high).flatten()
        self._high[undecided] = 0.0
        self.above += self._high.long()
        if len(undecided):
            self._count_again(undecided, block, hidden, low, high)

    def settle(self) -> tuple[Tensor, Tensor]:
        """Above and equal, with what lay between scored in float64."""
        equal = torch.zeros_like(self.above)
        if self.between:
            number = torch.cat([number for number, _ in self.between])
            item = self.items.item_ids[torch.cat([place for _, place in self.between])]
            is_other = item != self.target[number]
            number, item = number[is_other], item[is_other]
            score = self.items.exact_scores(self.states, self.line[number], item)
            is_above, is_equal = score > self.scores[number], score == self.scores[number]
            self.above += torch.bincount(number[is_above], minlength=len(equal))
            equal += torch.bincount(number[is_equal], minlength=len(equal))
        return self.above, equal

    def _count_lines(self, first: int, scores: Tensor, low: Tensor, high: Tensor, block: _Block) -> None:
        """How many scores of each of these lines lie at least at `low`, and above `high`."""
        layers = itertools.pairwise([*self.starts, len(self.target)])
        runs = [(start + first, min(len(scores), end - start - first)) for start, end in layers]
        runs = [(begin, count) for begin, count in runs if count > 0]
        for begin, count in runs:
            own, of_run = scores[:count], slice(begin, begin + count)
            # 0.0 and 1.0 in place: comparing and adding floats is what a CPU does fastest.
            is_low = self._buffer(1, count, block).copy_(own).ge_(low[of_run, None])
            is_high = own if (begin, count) == runs[-1] else self._buffer(2, count, block).copy_(own)
            torch.sum(is_low, 1, out=self._low[of_run])
            torch.sum(is_high.gt_(high[of_run, None]), 1, out=self._high[of_run])

    def _count_again(self, undecided: Tensor, block: _Block, hidden: Cells, low: Tensor, high: Tensor) -> None:
        """Score the block again for these targets, and keep what lies between.

        Another product may round otherwise: these targets are counted by this one alone.
        """
        for numbers in torch.split(undecided, LINES_AT_ONCE):
            lines, own = torch.unique(self.line[numbers], return_inverse=True)
            scores = self.single[lines] @ block.vectors.T
            place = torch.full((len(self.single),), -1, dtype=torch.int64, device=lines.device)
            place[lines] = torch.arange(len(lines), device=lines.device)
            row = place[hidden.row]
            scores[row[row >= 0], hidden.item[row >= 0]] = -torch.inf
            scores = scores[own]
            is_high = scores > high[numbers, None]
            self.above[numbers] += is_high.sum(1)
            found, column = torch.nonzero((scores >= low[numbers, None]) & ~is_high, as_tuple=True)
            self.between.append((numbers[found], block.first + column))

    def _buffer(self, number: int, num_lines: int, block: _Block) -> Tensor:
        M = len(block.vectors)
        return self._buffers[number][: num_lines * M].view(num_lines, M)


def _lines(row: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Targets in parts: (slice of the targets, line of each, row of each line); lines with more targets come first."""
    if len(row) == 0:
        return
    number = torch.arange(len(row), device=row.device)
    is_first = torch.ones_like(row, dtype=torch.bool)
    is_first[1:] = row[1:] != row[:-1]
    in_row = number - torch.cummax(torch.where(is_first, number, 0), dim=0).values
    begins = in_row % TARGETS_PER_LINE == 0
    bounds = [*torch.nonzero(begins).flatten()[::LINES_PER_PART].tolist(), len(row)]
    for first, last in itertools.pairwise(bounds):
        line = begins[first:last].long().cumsum(0) - 1
        order = torch.argsort(torch.bincount(line), descending=True, stable=True)
        yield slice(first, last), torch.argsort(order)[line], row[first:last][begins[first:last]][order]


def _layers(line: Tensor) -> tuple[Tensor, list[int]]:
    """Numbers of the targets layer by layer, lines ascending within a layer; and where each layer starts."""
    by_line = torch.argsort(line, stable=True)
    counts = torch.bincount(line)
    in_line = torch.arange(len(line), device=line.device) - (counts.cumsum(0) - counts)[line[by_line]]
    order = torch.argsort(in_line, stable=True)
    sizes = torch.bincount(in_line)
    return by_line[order], (sizes.cumsum(0) - sizes).tolist()


def _take(hidden: Cells, states: Tensor, num_states: int) -> Cells:
    """The cells of these states, numbered by their place among `states`."""
    counts = torch.bincount(hidden.row, minlength=num_states)
    lengths, first = counts[states], (counts.cumsum(0) - counts)[states]
    row = torch.repeat_interleave(torch.arange(len(states), device=states.device), lengths)
    shift = torch.repeat_interleave(first - (lengths.cumsum(0) - lengths), lengths)
    return Cells(row, hidden.item[torch.arange(len(row), device=states.device) + shift])


def _by_block(items: ScreenedItems, cells: Cells) -> Iterator[Cells]:
    """The cells of each block, rows ascending; the item is then its column in the block."""
    place = items.place[cells.item]
    number = torch.where(place < 0, -1, place // items.block_items)
    order = torch.argsort(number, stable=True)
    row, place = cells.row[order], place[order]
    bounds = torch.searchsorted(number[order], torch.arange(len(items.blocks) + 1).to(number)).tolist()
    for block, (first, last) in zip(items.blocks, itertools.pairwise(bounds), strict=True):
        yield Cells(row[first:last], place[first:last] - block.first)


def _outward(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """float32 values at or below `low` and at or above `high`."""
    down, up = low.float(), high.float()
    return (
        torch.nextafter(down, torch.full_like(down, -torch.inf)),
        torch.nextafter(up, torch.full_like(up, torch.inf)),
    )

"""Rows in pages by the Triton kernels, against the torch path, which goes page by page."""

from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.row_pages import RowOptimizer, RowPages
from recsys.kernels.row_pages.marks import FREE
from recsys.kernels.row_pages.optimizers import NAMES
from recsys.kernels.row_pages.triton_path import PIECE


def filled(optimizer: RowOptimizer, width: int, num_rows: int = 50) -> RowPages:
    pages = RowPages(width, optimizer, page_rows=8)
    pages.grow(num_rows)
    generator = torch.Generator().manual_seed(0)
    pages.write(torch.arange(num_rows), torch.randn(num_rows, width, generator=generator), None, 1)
    return pages


def on_both_paths(monkeypatch: pytest.MonkeyPatch, optimizer: RowOptimizer, width: int) -> tuple[RowPages, RowPages]:
    """By torch, and by Triton."""
    monkeypatch.setattr("recsys.kernels.row_pages.column.has_numba", lambda: False)
    monkeypatch.setenv("RECSYS_KERNELS", "torch")
    by_torch = filled(optimizer, width)
    monkeypatch.setenv("RECSYS_KERNELS", "triton")
    return by_torch, filled(optimizer, width)


@pytest.mark.parametrize("width", [1, 12, 32])
def test_rows_are_gathered_and_one_below_zero_is_zeros(width: int) -> None:
    pages = filled(RowOptimizer("sgd"), width)
    every = torch.cat(pages.vectors.pages)
    wanted = torch.tensor([49, -1, 0, 7, 8, 8, -3] * 30)
    assert torch.equal(pages.gather(wanted), torch.where(wanted[:, None] < 0, 0.0, every[wanted]))
    assert pages.gather(wanted[:0]).shape == (0, width)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1, 4, 12, 33])
def test_an_update_is_that_of_the_torch_path(name: Any, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = RowOptimizer(name, weight_decay=0.1, eps=1e-3, initial_accumulator=0.1)
    both = on_both_paths(monkeypatch, optimizer, width)
    generator = torch.Generator().manual_seed(1)
    for tick in range(2, 5):
        given = torch.randint(-2, 40, (300,), generator=generator)
        gradients = torch.randn(300, width, generator=generator)
        for path, pages in zip(("torch", "triton"), both, strict=True):
            monkeypatch.setenv("RECSYS_KERNELS", path)
            pages.update(given, gradients, lr=0.05, tick=tick)
    wanted, found = (pages.read(torch.arange(50)) for pages in both)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(found[2], wanted[2])
    assert found[2].dtype == wanted[2].dtype == torch.int32


def test_a_row_is_touched_once_a_step_however_often_it_stands_there() -> None:
    pages = RowPages(4, RowOptimizer("sgd"), page_rows=8, are_counted=True)
    pages.grow(20)
    pages.write(torch.arange(19), torch.zeros(19, 4), None, 1)  # 19 is free
    for given in ([3, 3, -1, 9, 3], [9, 19, -1]):
        pages.update(torch.tensor(given), torch.ones(len(given), 4), lr=0.1, tick=2)
    assert pages.counts is not None
    counts = pages.counts.gather(torch.arange(20)).squeeze(1)
    assert counts.tolist() == [{3: 1, 9: 2}.get(row, 0) for row in range(20)]


@pytest.mark.parametrize("times", [1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, PIECE**2 + 3])
def test_a_row_that_stands_often_is_summed_once(times: int) -> None:
    """Sums of whole numbers, which float32 holds exactly in any order."""
    pages = filled(RowOptimizer("sgd"), width=2)
    before = torch.cat(pages.vectors.pages)
    rows = torch.cat([torch.tensor([3, 9, 4, -1]), torch.full((times,), 9)])[torch.randperm(times + 4)]
    gradients = torch.randint(-8, 9, (len(rows), 2)).float()
    pages.update(rows, gradients, lr=1.0, tick=2)
    moved = torch.zeros_like(before)
    for row in (3, 4, 9):
        moved[row] = gradients[rows == row].sum(0)
    assert torch.equal(pages.gather(torch.arange(50)), (before - moved)[:50])


def test_adams_steps_are_right_however_near_to_1_the_betas_are() -> None:
    """The first step of a row is lr times the sign of its gradient, whatever the betas are."""
    for betas in ((0.0, 0.0), (0.9, 0.999), (0.9999, 0.999999)):
        pages = filled(RowOptimizer("adam", beta1=betas[0], beta2=betas[1], eps=1e-12), width=4)
        before, gradients = torch.cat(pages.vectors.pages)[:50], torch.randn(50, 4)
        pages.update(torch.arange(50), gradients, lr=0.5, tick=2)
        torch.testing.assert_close(pages.gather(torch.arange(50)), before - 0.5 * gradients.sign(), rtol=0, atol=2e-5)


def test_rows_are_written_and_read_back() -> None:
    pages = filled(RowOptimizer("adagrad", initial_accumulator=0.5), width=3)
    rows = torch.tensor([17, 0, 49])
    vectors, states, ticks = torch.randn(3, 3), torch.rand(3, 3), torch.tensor([7, 8, 9], dtype=torch.int32)
    pages.write(rows, vectors, states, ticks)
    for mine, its in zip(pages.read(rows), (vectors, states, ticks), strict=True):
        assert torch.equal(mine, its)
    pages.write(rows[:1], vectors[1:2], None, 4)
    first = pages.read(rows)
    assert torch.equal(first[0][0], vectors[1])
    assert torch.equal(first[1], torch.cat([torch.full((1, 3), 0.5), states[1:]]))
    assert first[2].tolist() == [4, 8, 9]
    assert torch.equal(pages.read(torch.tensor([16, 18]))[2], torch.tensor([1, 1], dtype=torch.int32))


def test_growth_moves_no_row() -> None:
    pages = filled(RowOptimizer("adam"), width=5)
    before = pages.read(torch.arange(50))
    pages.grow(500)
    assert all(torch.equal(a, b) for a, b in zip(before, pages.read(torch.arange(50)), strict=True))
    _is_new(pages.read(torch.tensor([499, 56])))


def test_rows_too_wide_for_a_program_are_those_of_the_torch_path() -> None:
    pages = RowPages(1025, RowOptimizer(), page_rows=2)
    pages.grow(4)
    pages.write(torch.tensor([3]), torch.ones(1, 1025), None, 1)
    assert pages.gather(torch.tensor([3, -1]))[:, -1].tolist() == [1.0, 0.0]


def _is_new(rows: tuple[Tensor, Tensor, Tensor]) -> None:
    assert not any(part.any() for part in rows[:2])
    assert set(rows[2].tolist()) == {FREE}

"""Rows in pages: both paths against the definition, which knows no pages."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from recsys.kernels.cpu.owed_memory import owed_memory
from recsys.kernels.row_pages import RowOptimizer, RowPages, column
from recsys.kernels.row_pages.marks import FREE, MOST_COUNT
from recsys.kernels.row_pages.optimizers import NAMES

WIDTH = 12


@pytest.fixture(params=["numba", "torch"], autouse=True)
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column, "has_numba", lambda: request.param == "numba")


def filled(optimizer: RowOptimizer, num_rows: int = 50, width: int = WIDTH) -> RowPages:
    rows = RowPages(width, optimizer, page_rows=8)
    rows.grow(num_rows)
    generator = torch.Generator().manual_seed(0)
    rows.write(torch.arange(num_rows), torch.randn(num_rows, width, generator=generator), None, 1)
    return rows


def test_rows_are_gathered_and_one_below_zero_is_zeros() -> None:
    rows = filled(RowOptimizer())
    every = rows.read(torch.arange(50))[0]
    wanted = torch.tensor([49, -1, 0, 7, 8, 8])
    assert torch.equal(rows.gather(wanted), torch.where(wanted[:, None] < 0, 0.0, every[wanted]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1, 5, 12, 64])
def test_an_update_is_the_optimizers_step_on_the_sums(name: Any, width: int) -> None:
    optimizer = RowOptimizer(name, weight_decay=0.1, eps=1e-3, initial_accumulator=0.1)
    rows = filled(optimizer, width=width)
    vectors, states, ticks = rows.read(torch.arange(50))
    generator = torch.Generator().manual_seed(1)
    for tick in range(2, 5):
        given = torch.randint(-1, 40, (300,), generator=generator)
        gradients = torch.randn(300, width, generator=generator)
        rows.update(given, gradients, lr=0.05, tick=tick)
        for row in set(given[given >= 0].tolist()):
            total = torch.zeros(1, width)
            for gradient in gradients[given == row]:
                total += gradient
            optimizer.step(vectors[row : row + 1], states[row : row + 1], total, 0.05)
            ticks[row] = tick
    found = rows.read(torch.arange(50))
    torch.testing.assert_close(found[0], vectors, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], states, rtol=1e-5, atol=1e-6)
    assert torch.equal(found[2], ticks)


def test_a_row_is_touched_once_a_step_however_often_it_stands_there() -> None:
    rows = RowPages(WIDTH, RowOptimizer("sgd"), page_rows=8, are_counted=True)
    rows.grow(20)
    rows.write(torch.arange(19), torch.zeros(19, WIDTH), None, 1)  # 19 is free
    for given in ([3, 3, -1, 9, 3], [9, 19, -1]):
        rows.update(torch.tensor(given), torch.ones(len(given), WIDTH), lr=0.1, tick=2)
    assert rows.counts is not None
    counts = rows.counts.gather(torch.arange(20)).squeeze(1)
    assert counts.tolist() == [{3: 1, 9: 2}.get(row, 0) for row in range(20)]


def test_a_count_that_is_full_stays() -> None:
    rows = RowPages(WIDTH, RowOptimizer("sgd"), page_rows=8, are_counted=True)
    rows.grow(2)
    rows.write(torch.arange(2), torch.zeros(2, WIDTH), None, 1)
    assert rows.counts is not None
    rows.counts.put(torch.arange(2), torch.tensor([[MOST_COUNT - 1], [5]], dtype=torch.int32))
    for _ in range(3):
        rows.update(torch.arange(2), torch.ones(2, WIDTH), lr=0.1, tick=2)
    assert rows.counts.gather(torch.arange(2)).squeeze(1).tolist() == [MOST_COUNT, 8]


@pytest.mark.parametrize("name", NAMES)
def test_a_first_step_is_that_of_torch(name: Any) -> None:
    optimizer = RowOptimizer(name, eps=1e-3)
    rows = filled(optimizer)
    parameter = torch.nn.Parameter(rows.read(torch.arange(50))[0].clone())
    gradients = torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(1))
    parameter.grad = gradients.clone()
    rivals: dict[str, Any] = {
        "sgd": torch.optim.SGD([parameter], lr=0.1),
        "adagrad": torch.optim.Adagrad([parameter], lr=0.1, eps=1e-3),
        "adam": torch.optim.Adam([parameter], lr=0.1, eps=1e-3),
    }
    if name not in rivals:
        pytest.skip("torch has no row-wise Adagrad")
    for tick in range(3):
        rivals[name].step()
        rows.update(torch.arange(50), gradients, lr=0.1, tick=tick)
    torch.testing.assert_close(rows.gather(torch.arange(50)), parameter.detach(), rtol=1e-5, atol=1e-6)


def test_the_number_of_threads_changes_no_bit() -> None:
    generator, before, found = torch.Generator().manual_seed(0), torch.get_num_threads(), []
    given = torch.randint(-1, 50, (20_000,), generator=generator)
    gradients = torch.randn(20_000, WIDTH, generator=generator)
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            rows = filled(RowOptimizer("adam"))
            rows.update(given, gradients, lr=0.1, tick=3)
            found.append(torch.cat([rows.gather(given), *rows.read(torch.arange(50))[:1]]))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found)


def test_what_does_not_fit_the_rows_is_refused() -> None:
    rows = filled(RowOptimizer("adagrad"))
    with pytest.raises(ValueError, match=r"values is of the shape \(2, 5\); wanted \(2, 12\)"):
        rows.write(torch.tensor([0, 1]), torch.ones(2, WIDTH), torch.ones(2, 5), 1)
    with pytest.raises(ValueError, match=r"values is of the shape \(1, 12\); wanted \(2, 12\)"):
        rows.vectors.put(torch.tensor([0, 1]), torch.ones(1, WIDTH))


def test_growth_moves_no_row() -> None:
    rows = filled(RowOptimizer("adagrad", initial_accumulator=0.5))
    addresses = [page.data_ptr() for page in rows.vectors.pages]
    before = rows.read(torch.arange(50))
    rows.grow(500)
    assert [page.data_ptr() for page in rows.vectors.pages][: len(addresses)] == addresses
    assert all(torch.equal(a, b) for a, b in zip(before, rows.read(torch.arange(50)), strict=True))
    vectors, states, ticks = rows.read(torch.tensor([499]))
    assert not vectors.any()
    assert torch.equal(states, torch.full((1, WIDTH), 0.5))
    assert torch.equal(ticks, torch.tensor([FREE], dtype=torch.int32))
    assert rows.num_rows == 504


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width=0; wanted at least 1"),
        ({"width": 4, "page_rows": 12}, "page_rows=12; wanted a power of two"),
    ],
)
def test_what_are_no_pages_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowPages(optimizer=RowOptimizer(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "lion"}, "optimizer 'lion'; wanted sgd, row_wise_adagrad, adagrad, adam"),
        ({"eps": 0.0}, "eps=0.0; wanted above 0"),
        ({"beta2": 1.0}, r"beta2=1.0; wanted in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1; wanted at least 0"),
        ({"weight_decay": math.inf}, "weight_decay=inf; wanted a finite number"),
        ({"eps": math.inf}, "eps=inf; wanted a finite number"),
        ({"eps": "a"}, "eps='a'; wanted a finite number"),
        ({"beta1": True}, "beta1=True; wanted a finite number"),
        ({"initial_accumulator": math.inf}, "initial_accumulator=inf; wanted a finite number"),
        ({"initial_accumulator": 10**400}, "initial_accumulator=10+; wanted a finite number"),
    ],
)
def test_what_is_no_optimizer_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RowOptimizer(**arguments)


def test_a_watcher_is_told_of_rows_before_they_change() -> None:
    rows = filled(RowOptimizer("adagrad"))
    wanted = torch.tensor([3, 40, 3])
    before: dict[int, torch.Tensor] = {}

    def watch(written: torch.Tensor) -> None:
        for row, vector in zip(written.tolist(), rows.gather(written), strict=True):
            before.setdefault(row, vector.clone())

    rows.before_write = watch
    changes: list[Callable[[], None]] = [
        lambda: rows.update(wanted, torch.ones(3, WIDTH), 0.1, 2),
        lambda: rows.write(torch.tensor([3, 40]), torch.ones(2, WIDTH), None, 3),
        lambda: rows.free(torch.tensor([3, 40])),
        lambda: rows.begin(torch.tensor([3, 40]), torch.tensor([9, 8]), 0, 1.0, 4),
    ]
    for change in changes:
        was = rows.gather(torch.tensor([3, 40]))
        before.clear()
        change()
        assert sorted(before) == [3, 40]
        assert torch.equal(torch.stack([before[3], before[40]]), was)
        assert not torch.equal(rows.gather(torch.tensor([3, 40])), was)


def test_where_memory_ends_the_pages_that_came_before_are_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = filled(RowOptimizer(), num_rows=16)
    times = 0

    def rarer(num_bytes: int) -> Any:
        nonlocal times
        times += 1
        if times > 5:
            raise MemoryError
        return owed_memory(num_bytes)

    with monkeypatch.context() as rare:
        rare.setattr(column, "owed_memory", rarer)
        with pytest.raises(MemoryError):
            rows.grow(128)
    assert rows.num_rows == 16
    assert [len(part.addresses) for part in rows.columns.values()] == [len(p.pages) for p in rows.columns.values()]
    rows.grow(128)
    rows.write(torch.arange(128), torch.ones(128, WIDTH), None, 1)
    assert rows.gather(torch.arange(128)).sum() == 128 * WIDTH

from typing import Any

import pytest
import torch

from recsys.kernels.row_pages import RowOptimizer, RowPages
from recsys.kernels.row_pages.optimizers import NAMES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NUM_ROWS = 3_000


def filled(optimizer: RowOptimizer, width: int, device: str, page_rows: int | None = 256) -> RowPages:
    pages = RowPages(width, optimizer, page_rows=page_rows, device=device)
    pages.grow(NUM_ROWS)
    vectors = torch.randn(NUM_ROWS, width, generator=torch.Generator().manual_seed(0))
    pages.write(torch.arange(NUM_ROWS, device=device), vectors.to(device), None, 1)
    return pages


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [1, 8, 50, 64, 128, 1000, 1500])
def test_updates_are_those_of_the_cpu(name: Any, width: int) -> None:
    """Rows that stand once, often and very often in a call, and some that are none."""
    optimizer = RowOptimizer(name, weight_decay=0.1, eps=1e-3, initial_accumulator=0.1)
    on_cpu, on_gpu = (filled(optimizer, width, device) for device in ("cpu", "cuda"))
    generator = torch.Generator().manual_seed(1)
    for tick in range(2, 5):
        liked = torch.rand(4_000, generator=generator, dtype=torch.float64)
        rows = (NUM_ROWS**liked).long() - 2
        gradients = torch.randn(4_000, width, generator=generator)
        on_cpu.update(rows, gradients, lr=0.05, tick=tick)
        on_gpu.update(rows.cuda(), gradients.cuda(), lr=0.05, tick=tick)
    every = torch.arange(NUM_ROWS)
    wanted, found = on_cpu.read(every), on_gpu.read(every.cuda())
    for mine, its in zip(found[:2], wanted[:2], strict=True):
        torch.testing.assert_close(mine.cpu(), its, rtol=1e-4, atol=2e-5)
    assert torch.equal(found[2].cpu(), wanted[2])
    some = torch.tensor([5, -1, NUM_ROWS - 1, 0])
    assert torch.equal(on_gpu.gather(some.cuda())[[0, 2, 3]], found[0][some[[0, 2, 3]].cuda()])
    assert not on_gpu.gather(some.cuda())[1].any()


def test_every_run_gives_the_same_bits_however_often_a_row_stands() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = (torch.rand(300_000, generator=generator) ** 8 * NUM_ROWS).long().cuda()
    gradients = torch.randn(300_000, 64, generator=generator).cuda()
    results = []
    for _ in range(10):
        pages = filled(RowOptimizer("adam"), 64, "cuda", page_rows=None)
        pages.update(rows, gradients, lr=0.1, tick=2)
        results.append(torch.cat([part.float() for part in pages.read(torch.arange(NUM_ROWS).cuda())[:2]], 1))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_rows_beyond_two_billion_numbers_are_found() -> None:
    """Places in numbers from the first page on need 64 bits."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GB of memory that is free")
    pages = RowPages(1024, RowOptimizer("sgd"), page_rows=1 << 16, device="cuda")
    pages.grow(5 << 20)
    rows = torch.tensor([0, (2 << 20) + 1, (4 << 20) + 5, (5 << 20) - 1], device="cuda")
    vectors = torch.randn(4, 1024, device="cuda")
    pages.write(rows, vectors, None, 1)
    assert torch.equal(pages.gather(rows), vectors)
    assert not pages.gather(rows[1:2] + 1).any()

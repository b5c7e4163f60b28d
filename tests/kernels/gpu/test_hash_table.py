import pytest
import torch
from torch import Tensor

from recsys.kernels.hash_table import HashTable

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def random_ids(count: int, seed: int = 0) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed))


def test_the_table_is_that_of_the_cpu_call_by_call() -> None:
    """Ids that come again, refusals, erasures, admission, import."""
    on_cpu, on_gpu = HashTable(max_rows=60_000), HashTable(max_rows=60_000, device="cuda")
    for number in range(30):
        generator = torch.Generator().manual_seed(number)
        ids = torch.randint(-50_000, 50_000, (7_001 * (number % 4),), generator=generator) * 0x9E3779B97F4A7C1
        claims = on_cpu.claim(ids), on_gpu.claim(ids.cuda())
        assert torch.equal(claims[1].firsts.cpu(), claims[0].firsts)
        kept = torch.rand(len(claims[0].firsts), generator=generator) < 0.9
        wanted, found = on_cpu.settle(claims[0], kept), on_gpu.settle(claims[1], kept.cuda())
        assert torch.equal(found.rows.cpu(), wanted.rows)
        assert torch.equal(found.new.cpu(), wanted.new)
        erased = ids[torch.rand(len(ids), generator=generator) < 0.3]
        assert torch.equal(on_gpu.erase(erased.cuda()).cpu(), on_cpu.erase(erased))
        assert torch.equal(on_gpu.find(ids.cuda()).cpu(), on_cpu.find(ids))
        if number == 15:
            on_gpu.import_(*on_gpu.export())
    assert on_gpu.num_refused == on_cpu.num_refused > 0
    for mine, its in zip(on_gpu.export(), on_cpu.export(), strict=True):
        assert torch.equal(mine.cpu(), its)


@pytest.mark.parametrize("expected", [0, 3_000_000])
def test_millions_of_ids_are_found_again(expected: int) -> None:
    ids, table = random_ids(3_000_000).cuda(), HashTable(expected=expected, device="cuda")
    for part in torch.split(ids, 700_001):
        table.find_or_insert(part)
    rows = torch.arange(len(ids), device="cuda")
    assert torch.equal(table.find(ids), rows)
    assert (table.find(random_ids(1_000_000, seed=1).cuda()) == -1).all()
    assert torch.equal(table.erase(ids[::3]), rows[::3])
    assert torch.equal(table.find(ids), torch.where(rows % 3 == 0, -1, rows))
    again = table.find_or_insert(ids[::3]).rows
    assert torch.equal(again, rows[::3].flip(0))


def test_every_run_gives_the_same_memory() -> None:
    """Not only the same rows: ids lie in the same slots."""
    from recsys.kernels.hash_table.triton_index import TritonIndex

    ids, slabs = random_ids(400_000).cuda(), []
    for _ in range(5):
        table = HashTable(device="cuda")
        for part in torch.split(ids, 90_000):
            table.find_or_insert(part)
            table.erase(part[::5])
        assert isinstance(table._index, TritonIndex)
        slabs.append([slab.clone() for slab in table._index._memory._slabs])
    for other in slabs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(slabs[0], other, strict=True))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_look_up_does_not_wait_for_the_gpu() -> None:
    ids, table = random_ids(100_000).cuda(), HashTable(device="cuda")
    table.find_or_insert(ids)
    table.find(ids)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        rows = table.find(ids)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert torch.equal(rows, torch.arange(len(ids), device="cuda"))

from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.jagged_embedding import jagged_embedding, jagged_embedding_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def _run(
    run: Any, tables: list[Tensor], ids: Tensor, positions: Tensor, share: Tensor, dropout_p: float
) -> list[Tensor]:
    w, pos = (table.detach().clone().requires_grad_() for table in tables)
    out = run(w, ids, pos=pos, positions=positions, scale=8.0, dropout_p=dropout_p, seed=3, padding_idx=0)
    return [out.detach(), *torch.autograd.grad(out, (w, pos), share.to(out.dtype))]


def _inputs(T: int, V: int, P: int, D: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T + D)
    w, pos, share = (torch.randn(size, D, generator=generator).cuda() for size in (V, P, T))
    ids, positions = (torch.randint(0, size, (T,), generator=generator).cuda() for size in (V, P))
    return [w, pos], ids, positions, share


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("size", [(0, 3, 2, 4), (1, 1, 1, 1), (1000, 63, 17, 50), (4096, 500, 200, 256)])
def test_errors_are_at_most_twice_and_thrice_those_of_torch(
    size: tuple[int, int, int, int], dropout_p: float, dtype: torch.dtype
) -> None:
    tables, ids, positions, share = _inputs(*size)
    narrow, share = [table.to(dtype) for table in tables], share.to(dtype)
    rest = (ids, positions, share, dropout_p)
    exact = _run(jagged_embedding_reference, [table.double() for table in narrow], *rest)
    found, torch_same = (_run(run, narrow, *rest) for run in (jagged_embedding, jagged_embedding_reference))
    for place, (a, b, wanted) in enumerate(zip(found, torch_same, exact, strict=True)):
        assert a.dtype == dtype
        if a.numel():
            floor = torch.finfo(dtype).eps * float(wanted.abs().max())
            error, allowed = (float((other.double() - wanted).abs().max()) for other in (a, b))
            assert error <= (2 if place == 0 else 3) * max(allowed, floor)


def test_every_run_gives_the_same_bits() -> None:
    tables, ids, positions, share = _inputs(20_000, 300, 50, 64)
    first = _run(jagged_embedding, tables, ids, positions, share, 0.2)
    for _ in range(20):
        for a, b in zip(_run(jagged_embedding, tables, ids, positions, share, 0.2), first, strict=True):
            assert torch.equal(a, b)


def test_the_mask_is_that_of_the_cpu() -> None:
    w, ids = torch.ones(5, 100), torch.arange(5).repeat(40)
    on_gpu = jagged_embedding(w.cuda(), ids.cuda(), dropout_p=0.3, seed=9)
    assert torch.equal(on_gpu.cpu() == 0, jagged_embedding(w, ids, dropout_p=0.3, seed=9) == 0)


def test_a_token_of_no_row_is_nan_without_a_wait() -> None:
    out = jagged_embedding(torch.ones(3, 4).cuda(), torch.tensor([0, 3, -1, 2]).cuda())
    assert out.isnan().all(1).tolist() == [False, True, True, False]

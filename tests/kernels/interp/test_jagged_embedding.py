from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.jagged_embedding import jagged_embedding, jagged_embedding_reference


def _inputs(T: int, V: int, P: int, D: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(T)
    w, pos = (torch.randn(size, D, generator=generator, dtype=torch.float64) for size in (V, P))
    ids, positions = (torch.randint(0, size, (T,), generator=generator) for size in (V, P))
    return w, ids, pos, positions, torch.randn(T, D, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [(0, 3, 2, 4), (1, 1, 1, 1), (17, 4, 2, 130)])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("has_positions", [False, True])
def test_the_kernels_equal_the_definition(
    size: tuple[int, int, int, int], dropout_p: float, has_positions: bool, dtype: torch.dtype
) -> None:
    w, ids, pos, positions, share = _inputs(*size)
    arguments: dict[str, Any] = {"scale": 0.3, "dropout_p": dropout_p, "seed": 2**33 + 7, "padding_idx": 0}
    results = []
    for run, kind in ((jagged_embedding, dtype), (jagged_embedding_reference, torch.float64)):
        leaves = [table.to(kind).requires_grad_() for table in ((w, pos) if has_positions else (w,))]
        places: dict[str, Any] = {"pos": leaves[1], "positions": positions} if has_positions else {}
        out = run(leaves[0], ids, **places, **arguments)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, share.to(kind))])
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    for found, expected in zip(*results, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=bound, atol=bound)


def test_the_mask_is_that_of_the_torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    w, ids = torch.ones(3, 40), torch.tensor([0, 1, 2, 2, 1] * 7)
    by_triton = jagged_embedding(w, ids, dropout_p=0.4, seed=5)
    monkeypatch.setenv("RECSYS_KERNELS", "torch")
    by_torch = jagged_embedding(w, ids, dropout_p=0.4, seed=5)
    assert torch.equal(by_triton == 0, by_torch == 0)
    assert 0.3 < float((by_torch == 0).float().mean()) < 0.5


def test_a_token_of_no_row_is_nan_and_passes_no_gradient() -> None:
    from recsys.kernels.jagged_embedding.triton_embedding import embed, gradients

    w, pos = torch.ones(3, 4), torch.ones(2, 4)
    ids, positions = torch.tensor([0, 3, -1, 2, 1]), torch.tensor([0, 1, 1, 2, -1])
    out = embed(w, ids, pos, positions, 1.0, 0.0, 0)
    assert out.isnan().all(1).tolist() == [False, True, True, True, True]
    grads = gradients(torch.ones(5, 4), ids, positions, (3, 2), 1.0, 0.0, 0, None, (True, True))
    assert [grad[:, 0].tolist() for grad in grads if grad is not None] == [[1.0, 1.0, 1.0], [1.0, 2.0]]


def test_only_the_table_that_needs_a_gradient_gets_one() -> None:
    w, ids, pos, positions, share = _inputs(9, 4, 3, 5)
    for leaf, other in ((w, pos), (pos, w)):
        leaf.requires_grad_()
        out = jagged_embedding(w, ids, pos=pos, positions=positions)
        torch.autograd.backward(out, share)
        assert leaf.grad is not None
        assert other.grad is None
        leaf.requires_grad_(False)
        leaf.grad = None

from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.sampled_loss import sampled_loss, sampled_loss_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
KINDS = ["softmax", "logq", "bce", "gbce"]
SHARINGS = ["all", "groups", "rows"]


def _inputs(sharing: str, kind: str, N: int, V: int, D: int, G: int, K: int) -> tuple[list[Tensor], dict[str, Any]]:
    generator = torch.Generator().manual_seed(N + K + D)
    leaves = [torch.randn(*size, generator=generator).cuda() for size in ((N, D), (V, D), (V,))]
    q = torch.rand(V, generator=generator) + 0.1
    size = {"all": (K,), "groups": (G, K), "rows": (N, K)}[sharing]
    groups = torch.randint(0, G, (N,), generator=generator).cuda() if sharing == "groups" else None
    arguments: dict[str, Any] = {
        "target": torch.randint(0, V, (N,), generator=generator).cuda(),
        "negatives": torch.randint(-1, V, size, generator=generator).cuda(),
        "groups": groups,
        "kind": kind,
        "log_q": (0.9 * q / q.sum()).log().cuda() if kind in ("softmax", "logq") else None,
        "beta": 0.3 if kind == "gbce" else 1.0,
    }
    return leaves, arguments


def _run(run: Any, leaves: list[Tensor], arguments: dict[str, Any]) -> list[Tensor]:
    """Losses and gradients for x, w and bias, in the dtype of the leaves."""
    x, w, bias = (leaf.detach().clone().requires_grad_() for leaf in leaves)
    log_q = arguments["log_q"]
    given = {**arguments, "log_q": None if log_q is None else log_q.to(x.dtype)}
    losses = run(x, w, bias=bias, reduction="none", **given)
    share = torch.randn(len(x), generator=torch.Generator().manual_seed(1)).cuda().to(losses.dtype)
    grads = torch.autograd.grad(losses, (x, w, bias), share, allow_unused=True, materialize_grads=True)
    return [losses.detach(), *grads]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [8, 32, 64, 128, 256])
@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_at_most_twice_and_thrice_those_of_torch(
    kind: str, sharing: str, width: int, dtype: torch.dtype
) -> None:
    leaves, arguments = _inputs(sharing, kind, 150, 63, width, 7, 130)
    leaves[0] = leaves[0] * width**-0.5
    narrow = [leaf.to(dtype) for leaf in leaves]
    if arguments["log_q"] is not None:
        arguments["log_q"] = arguments["log_q"].to(dtype)
    exact = _run(sampled_loss_reference, [leaf.double() for leaf in narrow], arguments)
    found, torch_same = (_run(run, narrow, arguments) for run in (sampled_loss, sampled_loss_reference))
    for place, (a, b, wanted) in enumerate(zip(found, torch_same, exact, strict=True)):
        floor = torch.finfo(dtype).eps * float(wanted.abs().max())
        error, allowed = (float((other.double() - wanted).abs().max()) for other in (a, b))
        assert error <= (2 if place == 0 else 3) * max(allowed, floor), (place, error, allowed, floor)


@pytest.mark.parametrize("size", [(0, 3, 4, 2, 5), (1, 1, 1, 1, 1), (3, 4, 5, 2, 0), (17, 5, 1, 3, 17)])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_odd_sizes_equal_the_definition(sharing: str, size: tuple[int, int, int, int, int]) -> None:
    leaves, arguments = _inputs(sharing, "logq", *size)
    found = _run(sampled_loss, leaves, arguments)
    expected = _run(sampled_loss_reference, [leaf.double() for leaf in leaves], arguments)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_every_run_gives_the_same_bits(sharing: str) -> None:
    leaves, arguments = _inputs(sharing, "softmax", 3000, 500, 64, 40, 200)
    first = _run(sampled_loss, leaves, arguments)
    for _ in range(20):
        for a, b in zip(_run(sampled_loss, leaves, arguments), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_mean_in_float16_does_not_lose_small_derivatives(sharing: str) -> None:
    """A row's share is 1 / 4000, a negative's of it some 1 / 200: below the least number of float16."""
    leaves, arguments = _inputs(sharing, "bce", 4000, 50, 16, 20, 200)
    narrow = [leaf.half().requires_grad_() for leaf in leaves]
    wide = [leaf.detach().double().requires_grad_() for leaf in narrow]
    grads = []
    for run, (x, w, bias) in ((sampled_loss, narrow), (sampled_loss_reference, wide)):
        loss = run(x, w, bias=bias, **arguments)
        grads.append(torch.autograd.grad(loss, (w, bias)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-2, atol=2e-3 * float(b.abs().max()))


def test_narrow_tables_of_another_dtype_are_met_wide() -> None:
    leaves, arguments = _inputs("all", "softmax", 40, 30, 16, 1, 20)
    mixed = [leaves[0].half(), leaves[1].bfloat16(), leaves[2]]
    found = _run(sampled_loss, mixed, {**arguments, "log_q": None})
    expected = _run(sampled_loss_reference, [leaf.double() for leaf in mixed], {**arguments, "log_q": None})
    torch.testing.assert_close(found[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    assert [grad.dtype for grad in found[1:]] == [leaf.dtype for leaf in mixed]


def test_vectors_beyond_two_to_the_31_numbers_are_reached() -> None:
    V, D = 2**31 // 256 + 10, 256
    w = torch.zeros(V, D, dtype=torch.bfloat16, device="cuda")
    w[-1] = 1.0
    x = torch.ones(20, D, dtype=torch.bfloat16, device="cuda")
    target = torch.zeros(20, dtype=torch.int64, device="cuda")
    for negatives in (torch.tensor([V - 1], device="cuda"), torch.full((20, 1), V - 1, device="cuda")):
        losses = sampled_loss(x, w, target, negatives, reduction="none")
        torch.testing.assert_close(losses, torch.full_like(losses, 256.0))

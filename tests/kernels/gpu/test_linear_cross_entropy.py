from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "triton")


@pytest.fixture(autouse=True)
def _without_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def _inputs(
    N: int, V: int, D: int, dtype: torch.dtype = torch.float32, size: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(N + V + D)
    x, w, bias = (torch.randn(*shape, generator=generator) for shape in ((N, D), (V, D), (V,)))
    target = torch.randint(0, V, (N,), generator=generator)
    target[torch.rand(N, generator=generator) < 0.2] = -100
    target[0], target[-1] = V - 1, 0
    leaves = [t.to("cuda", dtype).requires_grad_() for t in (x * size * D**-0.5, w, bias)]
    return leaves[0], leaves[1], leaves[2], target.cuda()


def _full(x: Tensor, w: Tensor, target: Tensor, *, bias: Tensor, **arguments: Any) -> Tensor:
    """As one writes it without a kernel: logits in the inputs' dtype, cross entropy in float32."""
    return F.cross_entropy(F.linear(x, w, bias).float(), target, **arguments)


def _with_grads(loss: Tensor, leaves: tuple[Tensor, ...]) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [8, 16, 32, 50, 64, 100, 128, 200, 256])
def test_the_error_is_within_twice_that_of_full_logits_and_thrice_in_gradients(dtype: torch.dtype, D: int) -> None:
    for N, V, size, smoothing in [
        (1, 2, 1.0, 0.0),
        (63, 1000, 30.0, 0.1),
        (700, 333, 1.0, 0.1),
        (1000, 5001, 8.0, 0.0),
    ]:
        x, w, bias, target = _inputs(N, V, D, dtype, size)
        leaves = (x, w, bias)
        wide = tuple(leaf.detach().double().requires_grad_() for leaf in leaves)
        arguments: dict[str, Any] = {"label_smoothing": smoothing, "reduction": "none"}
        expected = _with_grads(
            linear_cross_entropy_reference(wide[0], wide[1], target, bias=wide[2], **arguments), wide
        )
        found = _with_grads(linear_cross_entropy(x, w, target, bias=bias, **arguments), leaves)
        plain = _with_grads(_full(x, w, target, bias=bias, **arguments), leaves)
        for a, b, c, allowed in zip(found, expected, plain, (2, 3, 3, 3), strict=True):
            floor = torch.finfo(a.dtype).eps * float(b.abs().amax())
            assert float((a - b).abs().amax()) <= allowed * max(float((c - b).abs().amax()), floor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("N", "V"), [(100, 20_000), (20_000, 100)])
def test_twenty_runs_give_the_same_bits(dtype: torch.dtype, N: int, V: int) -> None:
    x, w, bias, target = _inputs(N, V, 64, dtype)
    first = _with_grads(linear_cross_entropy(x, w, target, bias=bias), (x, w, bias))
    for _ in range(20):
        again = _with_grads(linear_cross_entropy(x, w, target, bias=bias), (x, w, bias))
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_host_never_waits_for_the_device(reduction: Any) -> None:
    x, w, bias, target = _inputs(300, 1000, 64)
    for mode in ("default", "error"):  # the first round compiles
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss = linear_cross_entropy(x, w, target, bias=bias, reduction=reduction, label_smoothing=0.1)
            torch.autograd.grad(loss.sum(), (x, w, bias))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("wrong", [-1, 1000, 1023, 2**32 + 1])
def test_a_target_outside_the_catalogue_makes_its_row_and_the_mean_nan(wrong: int) -> None:
    x, w, _, target = _inputs(300, 1000, 64)
    target[7] = wrong
    losses = linear_cross_entropy(x, w, target, reduction="none")
    assert losses.isnan().nonzero().flatten().tolist() == [7]
    loss = linear_cross_entropy(x, w, target)
    assert loss.isnan()
    assert all(grad.isnan().any() for grad in torch.autograd.grad(loss, (x, w)))


def test_logits_in_bfloat16_are_near_and_leave_a_sure_row_alone() -> None:
    x, w, bias, target = _inputs(500, 3000, 64)
    wide, narrow = (
        _with_grads(linear_cross_entropy(x, w, target, bias=bias, logits_dtype=dtype), (x, w, bias))
        for dtype in (None, torch.bfloat16)
    )
    torch.testing.assert_close(narrow[0], wide[0], rtol=0, atol=1e-3)
    for a, b in zip(narrow[1:], wide[1:], strict=True):
        assert a.dtype == torch.float32
        assert 0 < float((a - b).norm()) < 0.01 * float(b.norm())
    eye = (torch.eye(16, device="cuda") * 20.07).requires_grad_()
    losses = linear_cross_entropy(eye, eye.detach(), torch.arange(16).cuda(), logits_dtype=torch.bfloat16)
    assert losses.item() < 1e-6
    assert torch.autograd.grad(losses, eye)[0].abs().amax() < 1e-6


def test_a_compiled_loss_gives_the_eager_ones_bits() -> None:
    compiled = torch.compile(linear_cross_entropy, fullgraph=True)
    for N in (100, 333, 1000):
        x, w, bias, target = _inputs(N, 2000, 64, torch.bfloat16)
        found, expected = (_with_grads(f(x, w, target, bias=bias), (x, w)) for f in (compiled, linear_cross_entropy))
        torch.testing.assert_close(found, expected)


def test_items_beyond_the_range_of_int32_are_reached() -> None:
    V, D = (1 << 31) // 64 + 1000, 64
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GiB of free GPU memory")
    w = torch.zeros(V, D, dtype=torch.bfloat16, device="cuda")
    w[V - 3] = 1.0
    w.requires_grad_()
    x, target = torch.full((4, D), 0.5, device="cuda", dtype=torch.bfloat16), torch.tensor([V - 3, V - 1, 5, 0]).cuda()
    losses = linear_cross_entropy(x, w, target, reduction="none")
    lse = torch.tensor(V - 1 + torch.e**32, dtype=torch.float64).log()
    expected = lse - torch.tensor([32.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(losses.double().cpu(), expected, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(losses.sum(), w)
    torch.testing.assert_close(grad[V - 1], torch.full_like(grad[0], -0.5), rtol=0.02, atol=1e-4)
    torch.testing.assert_close(grad[V - 3], torch.full_like(grad[0], 1.5), rtol=0.02, atol=1e-2)

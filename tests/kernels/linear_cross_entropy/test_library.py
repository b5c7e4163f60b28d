from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from recsys.kernels.linear_cross_entropy import library, linear_cross_entropy


@pytest.fixture(autouse=True)
def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "torch")


def _inputs(N: int, V: int = 20, D: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, w, bias = (torch.randn(*size, generator=generator).requires_grad_() for size in ((N, D), (V, D), (V,)))
    target = torch.randint(0, V, (N,), generator=generator)
    target[N // 2] = -100
    return x, w, bias, target


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_narrow", [False, True])
def test_the_ops_keep_torchs_rules(has_bias: bool, is_narrow: bool) -> None:
    x, w, bias, target = _inputs(9)
    settings = (-100, 2.0, 0.1, is_narrow, 1 << 20)
    given = (x, w, bias if has_bias else None, target)
    torch.library.opcheck(library.rows_op, (*given, *settings, True))
    plain = [None if t is None else t.detach() for t in given]
    losses, _, state = library.rows_op(*plain, *settings, False)
    torch.library.opcheck(library.item_grads_op, (losses, state, True, has_bias, *plain, *settings))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_compiled_loss_equals_the_eager_one_in_at_most_two_graphs(reduction: Any) -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def run(x: Tensor, w: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, target, bias=bias, reduction=reduction, label_smoothing=0.1)

    compiled = torch.compile(run, backend=counter, fullgraph=True)
    for N in (5, 6, 9, 17, 30, 31, 64, 127):
        x, w, bias, target = _inputs(N, seed=N)
        leaves = (x, w, bias)
        found, expected = compiled(x, w, bias, target), run(x, w, bias, target)
        torch.testing.assert_close(found, expected)
        pairs = zip(*(torch.autograd.grad(loss.sum(), leaves) for loss in (found, expected)), strict=True)
        for a, b in pairs:
            torch.testing.assert_close(a, b)
    assert counter.frame_count <= 2


def test_a_compiled_loss_refuses_a_wrong_target_as_the_eager_one_does() -> None:
    torch.compiler.reset()
    x, w, _, target = _inputs(6)
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    with pytest.raises(ValueError, match=r"target\[0\]=20; wanted 0 to V-1=19, or ignore_index=-100"):
        compiled(x, w, torch.full_like(target, 20))


def test_a_width_without_kernels_is_refused_where_they_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "choose_backend", lambda _op, _x: "triton")
    x, w, target = torch.zeros(2, 257), torch.zeros(3, 257), torch.zeros(2, dtype=torch.int64)
    monkeypatch.setenv("RECSYS_KERNELS", "triton")
    with pytest.raises(RuntimeError, match="linear_cross_entropy has kernels for D up to 256, x has D=257"):
        linear_cross_entropy(x, w, target)
    monkeypatch.setenv("RECSYS_KERNELS", "auto")
    assert library.path_of(x, w) == "torch"
    assert library.path_of(x[:, :256], w[:, :256]) == "triton"


def test_the_reference_path_is_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "reference")
    x, w, bias, target = _inputs(9)
    found = linear_cross_entropy(x.to(torch.bfloat16), w, target, bias=bias)
    monkeypatch.setenv("RECSYS_KERNELS", "torch")
    torch.testing.assert_close(found, linear_cross_entropy(x.to(torch.bfloat16), w, target, bias=bias))

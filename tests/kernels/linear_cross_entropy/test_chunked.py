from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.linear_cross_entropy import linear_cross_entropy


@pytest.fixture(autouse=True)
def _by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "torch")


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(size, 4, generator=generator, dtype=torch.float64).requires_grad_() for size in (11, 30))
    return x, w, torch.randint(0, 30, (11,), generator=generator)


def test_the_gradient_formed_in_the_forward_pass_is_handed_over_without_a_copy() -> None:
    x, w, target = _inputs()
    loss = linear_cross_entropy(x, w, target)
    node: Any = loss.grad_fn
    formed = [grad.data_ptr() for grad in node.grads[:2]]
    loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
    assert [leaf.grad.data_ptr() for leaf in (x, w) if leaf.grad is not None] == formed


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_gradient_asked_twice_is_worked_out_again_and_leaves_the_first_alone(reduction: Any) -> None:
    x, w, target = _inputs()
    loss = linear_cross_entropy(x, w, target, reduction=reduction)
    once = torch.autograd.grad(2 * loss, (x, w), retain_graph=True)
    kept = [grad.clone() for grad in once]
    again = torch.autograd.grad(3 * loss, (x, w))
    for first, held, second in zip(once, kept, again, strict=True):
        assert torch.equal(first, held)
        torch.testing.assert_close(second / 3, first / 2)


def test_without_a_gradient_nothing_is_formed() -> None:
    x, w, target = _inputs()
    with torch.no_grad():
        bare = linear_cross_entropy(x, w, target)
    assert bare.grad_fn is None
    torch.testing.assert_close(bare, linear_cross_entropy(x, w, target).detach())


def test_autocast_narrows_no_product() -> None:
    x, w, target = (t.detach().float() if t.is_floating_point() else t for t in _inputs())
    leaf = x.requires_grad_()
    expected = linear_cross_entropy(leaf, w, target, reduction="none")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_cross_entropy(leaf, w, target, reduction="none")
        (grad,) = torch.autograd.grad(found.sum(), leaf)
    assert torch.equal(found, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), leaf)[0])

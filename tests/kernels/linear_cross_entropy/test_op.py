from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_reference


def _inputs(
    N: int, V: int, D: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, w, bias = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((N, D), (V, D), (V,)))
    target = torch.randint(0, V, (N,), generator=generator)
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_(), target


def _losses(x: Tensor, w: Tensor, target: Tensor, **arguments: Any) -> Tensor:
    return linear_cross_entropy(x, w, target, reduction="none", **arguments)


@settings(max_examples=60, deadline=None)
@given(
    N=st.sampled_from([0, 1, 2, 17, 63, 130]),
    V=st.sampled_from([1, 2, 31, 64, 257]),
    D=st.sampled_from([1, 8, 50]),
    has_bias=st.booleans(),
    share_ignored=st.sampled_from([0.0, 0.3, 1.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    logit_scale=st.sampled_from([1.0, 3.0]),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    budget=st.sampled_from([1, 5_000, 1 << 26]),
    seed=st.integers(0, 99),
)
def test_it_equals_cross_entropy_on_full_logits_in_value_and_gradient(
    N: int,
    V: int,
    D: int,
    has_bias: bool,
    share_ignored: float,
    reduction: Any,
    logit_scale: float,
    label_smoothing: float,
    budget: int,
    seed: int,
) -> None:
    x, w, bias, target = _inputs(N, V, D, seed)
    target[: round(share_ignored * N)] = -7
    leaves = [x, w, bias] if has_bias else [x, w]
    arguments: dict[str, Any] = {
        "bias": bias if has_bias else None,
        "ignore_index": -7,
        "reduction": reduction,
        "logit_scale": logit_scale,
        "label_smoothing": label_smoothing,
    }
    found = linear_cross_entropy(x, w, target, memory_budget_bytes=budget, **arguments)
    expected = linear_cross_entropy_reference(x, w, target, **arguments)
    torch.testing.assert_close(found, expected)
    share = torch.randn(expected.shape, dtype=expected.dtype)
    for a, b in zip(*(torch.autograd.grad(y, leaves, share) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_are_those_of_finite_differences(reduction: Any) -> None:
    x, w, bias, target = _inputs(5, 7, 3)
    target[2] = -100

    def run(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, target, bias=bias, reduction=reduction, label_smoothing=0.2, logit_scale=2.0)

    assert torch.autograd.gradcheck(run, (x, w, bias))


def test_the_reference_is_torchs_cross_entropy() -> None:
    x, w, bias, target = _inputs(9, 12, 4)
    target[3] = -100
    found = linear_cross_entropy_reference(x, w, target, bias=bias, label_smoothing=0.1)
    torch.testing.assert_close(found, F.cross_entropy(F.linear(x, w, bias), target, label_smoothing=0.1))


def test_the_mean_of_nothing_is_zero_and_so_are_its_gradients() -> None:
    for N, ignored in ((0, 0), (4, 4)):
        x, w, bias, target = _inputs(N, 6, 3)
        target[:ignored] = -100
        for reduction in ("mean", "sum"):
            loss = linear_cross_entropy(x, w, target, bias=bias, reduction=reduction)
            assert loss.item() == 0
            for grad in torch.autograd.grad(loss, (x, w, bias)):
                assert torch.equal(grad, torch.zeros_like(grad))


def test_an_ignored_row_gives_nothing_even_if_it_is_nan() -> None:
    x, w, _, target = _inputs(6, 9, 4)
    kept = torch.tensor([0, 2, 3, 5])
    alone = linear_cross_entropy(x[kept], w, target[kept])
    (expected,) = torch.autograd.grad(alone, w)
    with torch.no_grad():
        x[[1, 4]] = float("nan")
    target[[1, 4]] = -100
    loss = linear_cross_entropy(x, w, target)
    torch.testing.assert_close(loss, alone)
    grad_x, grad_w = torch.autograd.grad(loss, (x, w))
    torch.testing.assert_close(grad_w, expected)
    assert torch.equal(grad_x[[1, 4]], torch.zeros(2, 4, dtype=torch.float64))
    assert torch.equal(_losses(x, w, target)[[1, 4]], torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("size", [50.0, 1000.0])
def test_large_logits_neither_overflow_nor_vanish(size: float) -> None:
    x, w, _, target = _inputs(40, 300, 8)
    found, expected = (f(x * size, w, target) for f in (linear_cross_entropy, linear_cross_entropy_reference))
    torch.testing.assert_close(found, expected)
    for a, b in zip(*(torch.autograd.grad(y, (x, w)) for y in (found, expected)), strict=True):
        torch.testing.assert_close(a, b)


def test_the_gradient_of_a_scaled_loss_is_scaled_and_may_be_asked_twice() -> None:
    x, w, _, target = _inputs(6, 9, 4)
    loss = linear_cross_entropy(x, w, target)
    once = torch.autograd.grad(loss, w, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(3 * loss, w, retain_graph=True)[0], 3 * once)
    torch.testing.assert_close(torch.autograd.grad(loss, w)[0], once)


def test_only_asked_gradients_are_formed() -> None:
    x, w, bias, target = _inputs(6, 9, 4)
    for leaf, others in ((x, (w.detach(), bias.detach())), (w, (x.detach(), bias.detach()))):
        inputs = (leaf, *others) if leaf is x else (others[0], leaf, others[1])
        found = torch.autograd.grad(linear_cross_entropy(inputs[0], inputs[1], target, bias=inputs[2]), leaf)[0]
        expected = torch.autograd.grad(linear_cross_entropy_reference(x, w, target, bias=bias), leaf)[0]
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_computed_wide_and_get_gradients_of_their_own_dtype(dtype: torch.dtype) -> None:
    x, w, bias, target = _inputs(20, 50, 8, dtype=dtype)
    wide = [t.detach().float().requires_grad_() for t in (x, w, bias)]
    found = linear_cross_entropy(x, w, target, bias=bias)
    expected = linear_cross_entropy_reference(wide[0], wide[1], target, bias=wide[2])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    pairs = zip(torch.autograd.grad(found, (x, w, bias)), torch.autograd.grad(expected, wide), strict=True)
    for a, b in pairs:
        assert a.dtype == dtype
        torch.testing.assert_close(a.float(), b, rtol=1e-2, atol=1e-4)


def test_inputs_of_any_strides_give_the_same() -> None:
    x, w, _, target = _inputs(10, 12, 6)
    found = linear_cross_entropy(x[:, ::2], w.t().contiguous().t()[:, ::2], target)
    torch.testing.assert_close(found, linear_cross_entropy_reference(x[:, ::2], w[:, ::2], target))
    (grad,) = torch.autograd.grad(found, w)
    assert grad.shape == w.shape


@pytest.mark.parametrize("budget", [1, 40_000, 1 << 26])
def test_the_buffer_of_logits_stays_within_the_budget(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, _, target = _inputs(700, 1_000, 4, dtype=torch.float32)
    rows = []
    real = torch.mm

    def watched(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        rows.append(len(out) if out.shape[1] == 1_000 else 0)
        return real(a, b, out=out)

    monkeypatch.setattr(torch, "mm", watched)
    linear_cross_entropy(x, w, target)
    rows.clear()
    linear_cross_entropy(x, w, target, memory_budget_bytes=budget)
    assert sum(rows) == 700
    assert max(rows) * 1_000 * 4 <= max(budget, 4_000)


@settings(max_examples=40, deadline=None)
@given(
    N=st.sampled_from([0, 1, 17, 130]),
    V=st.sampled_from([1, 2, 64, 257]),
    has_bias=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    label_smoothing=st.sampled_from([0.0, 0.1]),
    size=st.sampled_from([0.3, 8.0]),
    budget=st.sampled_from([1, 1 << 26]),
    seed=st.integers(0, 99),
)
def test_logits_in_bfloat16_give_nearly_the_same_in_value_and_gradient(
    N: int, V: int, has_bias: bool, reduction: Any, label_smoothing: float, size: float, budget: int, seed: int
) -> None:
    x, w, bias, target = _inputs(N, V, 16, seed, dtype=torch.float32)
    leaves = [x, w, bias] if has_bias else [x, w]
    arguments: dict[str, Any] = {"bias": bias if has_bias else None, "reduction": reduction, "logit_scale": size}
    arguments |= {"label_smoothing": label_smoothing, "memory_budget_bytes": budget}
    narrow = linear_cross_entropy(x, w, target, logits_dtype=torch.bfloat16, **arguments)
    wide = linear_cross_entropy(x, w, target, **arguments)
    assert narrow.dtype == torch.float32
    # A logit is off by up to a 256th of its size, and no loss by more than its largest logit is.
    largest = size * (float((x.detach() @ w.detach().t()).abs().max()) + 4.0) if N else 1.0
    torch.testing.assert_close(narrow, wide, rtol=0, atol=(largest / 64 + 0.01) * (N if reduction == "sum" else 1))
    # A gradient is a sum whose terms may cancel, and smoothing cancels more: its error is that of the probabilities.
    with torch.no_grad():
        p = torch.softmax(size * (x @ w.t() + (bias if has_bias else 0.0)), dim=1)
        terms = size * (p - F.one_hot(target, V)).abs() / (max(N, 1) if reduction == "mean" else 1)  # (N, V)
        sizes = [terms @ w.abs(), terms.t() @ x.abs(), terms.sum(0)]
    rounding = 2**-23 * largest * size * N  # of float32, in the exponents
    narrow_grads, wide_grads = (torch.autograd.grad(loss.sum(), leaves) for loss in (narrow, wide))
    for a, b, each in zip(narrow_grads, wide_grads, sizes[: len(leaves)], strict=True):
        assert float((a - b).norm()) <= (0.02 + largest / 64) * float(each.norm()) + 1e-4 + rounding


def test_in_bfloat16_the_target_is_exact_where_it_is_all() -> None:
    """A row that is sure of its target has no loss and no gradient, however coarse the other logits are."""
    w = torch.eye(5)
    x = torch.full((4, 5), -20.03)
    x[torch.arange(4), torch.arange(4)] = 20.07
    x.requires_grad_()
    losses = _losses(x, w, torch.arange(4), logits_dtype=torch.bfloat16)
    assert losses.max().item() < 1e-6
    assert losses.min().item() >= -1e-6
    assert torch.autograd.grad(losses.sum(), x)[0].abs().max() < 1e-6


def test_bfloat16_logits_differ_and_their_error_averages_out() -> None:
    x, w, _, target = _inputs(2000, 1000, 32, dtype=torch.float32)
    narrow, wide = (_losses(x * 0.5, w, target, logits_dtype=dtype).detach() for dtype in (torch.bfloat16, None))
    error = narrow - wide
    assert 0 < float(error.abs().mean()) < 0.02
    assert abs(float(error.mean())) < 1e-3


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"w": torch.zeros(4, 2)}, r"x has the shape \(3, 5\), w has \(4, 2\); wanted \(N, D\) and \(V, D\)"),
    ({"w": torch.zeros(0, 5)}, "w has V=0 rows; wanted at least one item"),
    ({"target": torch.zeros(2, dtype=torch.int64)}, r"target has the shape \(2,\), x has N=3 rows; wanted \(3,\)"),
    ({"target": torch.zeros(3, dtype=torch.int32)}, "target is torch.int32; wanted int64"),
    ({"target": torch.tensor([0, 4, 1])}, r"target\[1\]=4; wanted 0 to V-1=3, or ignore_index=-100"),
    ({"target": torch.tensor([0, 1, -1])}, r"target\[2\]=-1; wanted 0 to V-1=3"),
    ({"bias": torch.zeros(3)}, r"bias has the shape \(3,\), w has V=4 rows; wanted \(4,\)"),
    ({"bias": torch.zeros(4, dtype=torch.int64)}, "bias is torch.int64; wanted a floating dtype"),
    ({"x": torch.zeros(3, 5, dtype=torch.int64)}, "x is torch.int64; wanted a floating dtype"),
    ({"w": torch.zeros(4, 5, device="meta")}, "x is on cpu, w is on meta; they must be equal"),
    ({"ignore_index": None}, "ignore_index=None; wanted a whole number, such as -100"),
    ({"reduction": "max"}, "reduction='max'; wanted 'mean', 'sum' or 'none'"),
    ({"label_smoothing": 1.5}, "label_smoothing=1.5; wanted 0 to 1"),
    ({"logits_dtype": torch.float16}, "logits_dtype=torch.float16; wanted torch.bfloat16 or None"),
    ({"memory_budget_bytes": 0}, "memory_budget_bytes=0; wanted at least 1"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_wrong_argument_is_refused_with_both_values(arguments: dict[str, Any], message: str) -> None:
    good = {"x": torch.zeros(3, 5), "w": torch.zeros(4, 5), "target": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**good, **arguments})


def test_the_definition_refuses_a_target_outside_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_KERNELS", "reference")
    with pytest.raises(ValueError, match=r"target\[1\]=3; wanted 0 to V-1=2, or ignore_index=-100"):
        linear_cross_entropy(torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor([-100, 3]))

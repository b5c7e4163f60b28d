from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.kernels.linear_cross_entropy import fused, linear_cross_entropy, linear_cross_entropy_reference
from recsys.kernels.linear_cross_entropy.library import item_grads_op, rows_op
from recsys.kernels.linear_cross_entropy.operands import Operands, Upstream

BOUND = {torch.float64: 1e-12, torch.float32: 5e-6}


def _inputs(
    N: int, V: int, D: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, w, bias = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((N, D), (V, D), (V,)))
    target = torch.randint(0, V, (N,), generator=generator)
    return x.to(dtype).requires_grad_(), w.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_(), target


def _with_grads(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    share = torch.randn(loss.shape, generator=generator, dtype=torch.float64).to(loss.dtype)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, share)]


def _errors(x: Tensor, w: Tensor, bias: Tensor | None, target: Tensor, **arguments: Any) -> list[float]:
    """Of the loss and each gradient against the definition in float64, relative to its size where that is over 1."""
    leaves = [leaf for leaf in (x, w, bias) if leaf is not None]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    found = _with_grads(linear_cross_entropy(x, w, target, bias=bias, **arguments), leaves)
    wide_bias = None if bias is None else wide[2]
    expected = linear_cross_entropy_reference(wide[0], wide[1], target, bias=wide_bias, **arguments)
    pairs = zip(found, _with_grads(expected, wide), strict=True)
    return [float((a - b).abs().amax() / b.abs().amax().clamp(min=1.0)) if b.numel() else 0.0 for a, b in pairs]


@settings(max_examples=30, deadline=None)
@given(
    N=st.sampled_from([0, 1, 2, 16, 17, 63]),
    V=st.sampled_from([1, 2, 31, 32, 33, 130]),
    D=st.sampled_from([1, 8, 16, 50]),
    has_bias=st.booleans(),
    share_ignored=st.sampled_from([0.0, 0.3, 1.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    logit_scale=st.sampled_from([1.0, 20.0, -0.7]),
    label_smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    programs=st.sampled_from([1, 4, 12]),
    dtype=st.sampled_from([torch.float64, torch.float64, torch.float32]),
    seed=st.integers(0, 99),
)
def test_the_kernels_equal_the_definition_in_value_and_gradient(
    N: int,
    V: int,
    D: int,
    has_bias: bool,
    share_ignored: float,
    reduction: Any,
    logit_scale: float,
    label_smoothing: float,
    programs: int,
    dtype: torch.dtype,
    seed: int,
) -> None:
    x, w, bias, target = _inputs(N, V, D, seed, dtype)
    target[torch.rand(N, generator=torch.Generator().manual_seed(seed)) < share_ignored] = -7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "PROGRAMS_A_PROCESSOR", programs)
        errors = _errors(
            x,
            w,
            bias if has_bias else None,
            target,
            ignore_index=-7,
            reduction=reduction,
            logit_scale=logit_scale,
            label_smoothing=label_smoothing,
        )
    assert max(errors) <= BOUND[dtype] * max(1.0, abs(logit_scale)), errors


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradients_are_those_of_finite_differences(reduction: Any) -> None:
    x, w, bias, target = _inputs(4, 5, 3)
    target[2] = -100

    def run(x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, target, bias=bias, reduction=reduction, label_smoothing=0.2, logit_scale=2.0)

    assert torch.autograd.gradcheck(run, (x, w, bias), fast_mode=True)


@pytest.mark.parametrize("size", [30.0, 1000.0])
def test_large_logits_neither_overflow_nor_vanish(size: float) -> None:
    x, w, bias, target = _inputs(20, 70, 8)
    assert max(_errors((x * size).detach().requires_grad_(), w, bias, target)) <= 1e-12
    x, w, bias, target = _inputs(20, 70, 8, dtype=torch.float32)
    assert max(_errors((x * size).detach().requires_grad_(), w, bias, target)) <= size * 1e-6


@pytest.mark.parametrize("programs", [1, 4, 16])
def test_however_work_is_cut_the_answer_is_the_definitions(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "PROGRAMS_A_PROCESSOR", programs)
    for N, V in ((63, 40), (16, 130)):
        assert max(_errors(*_inputs(N, V, 4), reduction="sum")) <= 1e-12


@pytest.mark.parametrize("shift", [2000.0, -2000.0])
def test_a_shift_of_all_biases_changes_nothing_however_far(shift: float) -> None:
    x, w, bias, target = _inputs(5, 40, 4)
    far = (bias.detach() + shift).requires_grad_()
    near_and_far = [_with_grads(linear_cross_entropy(x, w, target, bias=b), (x, w, b)) for b in (bias, far)]
    for a, b in zip(*near_and_far, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


def test_the_last_item_of_a_partial_tile_is_a_target_like_any_other() -> None:
    for V in (33, 40, 63):
        x, w, bias, target = _inputs(5, V, 4)
        assert max(_errors(x, w, bias, torch.full_like(target, V - 1))) <= 1e-12


def test_a_target_outside_the_catalogue_is_refused_on_the_cpu() -> None:
    x, w, _, target = _inputs(3, 33, 4)
    for wrong in (-1, 33, 40, 2**32 + 1):
        target[1] = wrong
        with pytest.raises(ValueError, match=rf"target\[1\]={wrong}; wanted 0 to V-1=32, or ignore_index=-100"):
            linear_cross_entropy(x, w, target)


@pytest.mark.parametrize("wrong", [-1, 33, 40, 63, 2**32 + 1])
def test_a_target_outside_the_catalogue_that_nobody_checked_is_nan_and_touches_no_other_row(wrong: int) -> None:
    x, w, bias, target = (t.detach() for t in _inputs(5, 33, 4))
    good = torch.arange(5) != 2
    operands = Operands(x, w, bias, target, -100, 1.0, 0.1, False, 1 << 20)
    losses, slope, state = fused.fused_forward(operands, True)
    target[2] = wrong
    found, found_slope, found_state = fused.fused_forward(operands, True)
    assert found[2].isnan()
    assert found_slope[2].isnan().all()
    assert torch.equal(found[good], losses[good])
    assert torch.equal(found_slope[good], slope[good])
    assert torch.equal(found_state[:, good], state[:, good])
    grads = fused.fused_backward(Upstream(torch.ones(5).double(), found_state, True, True), operands)
    assert all(grad.isnan().all() for grad in grads)


def test_an_ignored_row_gives_nothing_wherever_it_stands_even_if_it_is_nan() -> None:
    x, w, bias, target = _inputs(40, 50, 4)
    kept = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:21].sort().values
    answers = []
    for places in (torch.arange(21), kept):
        rows = torch.full((40, 4), float("nan"), dtype=torch.float64).index_copy(0, places, x.detach()[:21])
        wanted = torch.full((40,), -100).index_copy(0, places, target[:21])
        leaf = rows.requires_grad_()
        losses = linear_cross_entropy(leaf, w, wanted, bias=bias, reduction="none")
        share = torch.full_like(losses, float("nan")).index_fill(0, places, 0.5)
        grads = torch.autograd.grad(losses, (leaf, w, bias), share)
        answers.append([losses[places], grads[0][places], grads[1], grads[2]])
        others = torch.ones(40, dtype=torch.bool).index_fill(0, places, False)
        assert not losses[others].any()
        assert not grads[0][others].any()
    for a, b in zip(*answers, strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


def test_an_ignored_row_has_no_slope_under_smoothing_either() -> None:
    x, w, bias, target = (t.detach() for t in _inputs(5, 33, 4))
    target[1] = -100
    _, slope, _ = fused.fused_forward(Operands(x, w, bias, target, -100, 1.0, 0.1, False, 1 << 20), True)
    assert slope.any(dim=1).tolist() == [True, False, True, True, True]


def test_a_row_that_is_sure_of_its_target_has_no_loss_and_no_gradient() -> None:
    w = (torch.eye(5) * 20.07).requires_grad_()
    x = torch.full((4, 5), -20.03)
    x[torch.arange(4), torch.arange(4)] = 20.07
    x.requires_grad_()
    losses = linear_cross_entropy(x, w, torch.arange(4), reduction="none")
    assert torch.equal(losses, torch.zeros(4))
    for grad in torch.autograd.grad(losses.sum(), (x, w)):
        assert not grad.any()


def test_halves_are_multiplied_as_halves_and_summed_wide() -> None:
    x, w, bias, target = _inputs(33, 100, 16, dtype=torch.float16)
    found = _with_grads(linear_cross_entropy(x, w, target, bias=bias), (x, w, bias))
    wide = [leaf.detach().double().requires_grad_() for leaf in (x, w, bias)]
    expected = _with_grads(linear_cross_entropy_reference(wide[0], wide[1], target, bias=wide[2]), wide)
    assert [t.dtype for t in found] == [torch.float32, torch.float16, torch.float16, torch.float16]
    assert abs(float(found[0] - expected[0])) < 1e-6
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert float((a - b).norm() / b.norm()) < 2e-3


def test_gradients_below_the_range_of_a_half_still_count() -> None:
    """p times the row's weight is about 3e-8, which float16 rounds to 0 or 6e-8; 32 rows with x = 60 add up."""
    x, w = torch.full((32, 16), 60.0).half(), (torch.arange(330 * 16).view(330, 16) % 7 * 1e-4).half().requires_grad_()
    target = torch.zeros(32, dtype=torch.int64)
    wide = w.detach().double().requires_grad_()
    (found,) = torch.autograd.grad(linear_cross_entropy(x, w, target, reduction="sum") * 1e-5, w)
    (expected,) = torch.autograd.grad(linear_cross_entropy_reference(x.double(), wide, target, reduction="sum"), wide)
    torch.testing.assert_close(found[1:].double(), expected[1:] * 1e-5, rtol=0.01, atol=0)


def test_mixed_dtypes_are_multiplied_wide_and_get_gradients_of_their_own() -> None:
    x, w, bias, target = _inputs(9, 40, 8, dtype=torch.float32)
    half = x.detach().half().requires_grad_()
    loss = linear_cross_entropy(half, w, target, bias=bias)
    torch.testing.assert_close(loss, linear_cross_entropy_reference(half.float(), w, target, bias=bias))
    assert [grad.dtype for grad in torch.autograd.grad(loss, (half, w))] == [torch.float16, torch.float32]


def test_inputs_of_any_strides_give_the_same() -> None:
    x, w, bias, target = _inputs(10, 40, 12)
    bias = bias.detach().repeat_interleave(2)[::2]
    for a, b in ((x[:, ::2], w[:, ::2]), (x[:, :6], w[:, 6:]), (x[:, :6], w[:, :6].t().contiguous().t())):
        found, wanted_loss = (
            f(a, b, target, bias=bias) for f in (linear_cross_entropy, linear_cross_entropy_reference)
        )
        torch.testing.assert_close(found, wanted_loss)
        expected = torch.autograd.grad(wanted_loss, (x, w))
        for grad, wanted in zip(torch.autograd.grad(found, (x, w)), expected, strict=True):
            torch.testing.assert_close(grad, wanted)


def test_only_asked_gradients_are_formed() -> None:
    leaves = _inputs(6, 40, 4)
    target = leaves[3]
    expected = torch.autograd.grad(linear_cross_entropy_reference(*leaves[:2], target, bias=leaves[2]), leaves[:3])
    for asked, wanted in zip(range(3), expected, strict=True):
        x, w, bias = (leaf if i == asked else leaf.detach() for i, leaf in enumerate(leaves[:3]))
        (grad,) = torch.autograd.grad(linear_cross_entropy(x, w, target, bias=bias), leaves[asked])
        torch.testing.assert_close(grad, wanted)
    with torch.no_grad():
        assert not linear_cross_entropy(*leaves[:2], target).requires_grad


def test_the_same_call_gives_the_same_bits() -> None:
    x, w, bias, target = _inputs(40, 130, 8, dtype=torch.float32)
    first, *others = (_with_grads(linear_cross_entropy(x, w, target, bias=bias), (x, w, bias)) for _ in range(3))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_ops_keep_torchs_rules_and_compile() -> None:
    x, w, bias, target = _inputs(9, 40, 8)
    target[3] = -100
    settings = (-100, 2.0, 0.1, False, 1 << 20)
    torch.library.opcheck(rows_op, (x, w, bias, target, *settings, True))
    plain = [t.detach() for t in (x, w, bias, target)]
    losses, _, state = rows_op(*plain, *settings, True)
    torch.library.opcheck(item_grads_op, (losses, state, True, True, *plain, *settings))
    compiled = torch.compile(linear_cross_entropy, backend="aot_eager", fullgraph=True)
    found, expected = (_with_grads(f(x, w, target, bias=bias), (x, w, bias)) for f in (compiled, linear_cross_entropy))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_bfloat16_is_refused_where_the_interpreter_would_be_wrong() -> None:
    x, w, _, target = _inputs(3, 4, 2, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="the interpreter computes bfloat16 wrongly"):
        linear_cross_entropy(x, w, target, logits_dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="the interpreter computes bfloat16 wrongly"):
        linear_cross_entropy(x.to(torch.bfloat16), w, target)

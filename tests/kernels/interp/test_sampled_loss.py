from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.kernels.sampled_loss import sampled_loss, sampled_loss_reference

KINDS = ["softmax", "logq", "bce", "gbce"]
SHARINGS = ["all", "groups", "rows"]


def _inputs(sharing: str, kind: str, N: int, V: int, D: int, G: int, K: int) -> tuple[list[Tensor], dict[str, Any]]:
    """x, w and bias; the other arguments. Few items, so negatives often are the target; some slots hold -1."""
    generator = torch.Generator().manual_seed(N + K)
    leaves = [torch.randn(*size, generator=generator, dtype=torch.float64) for size in ((N, D), (V, D), (V,))]
    q = torch.rand(V, generator=generator, dtype=torch.float64) + 0.1
    size = {"all": (K,), "groups": (G, K), "rows": (N, K)}[sharing]
    arguments: dict[str, Any] = {
        "target": torch.randint(0, V, (N,), generator=generator),
        "negatives": torch.randint(-1, V, size, generator=generator),
        "groups": torch.randint(0, G, (N,), generator=generator) if sharing == "groups" else None,
        "kind": kind,
        "log_q": (0.9 * q / q.sum()).log() if kind in ("softmax", "logq") else None,
        "beta": 0.3 if kind == "gbce" else 1.0,
    }
    return leaves, arguments


def _run(run: Any, leaves: list[Tensor], arguments: dict[str, Any], dtype: torch.dtype) -> list[Tensor]:
    """Losses and gradients for x, w and bias, computed in `dtype`."""
    x, w, bias = (leaf.to(dtype).requires_grad_() for leaf in leaves)
    log_q = arguments["log_q"]
    given = {**arguments, "log_q": None if log_q is None else log_q.to(dtype)}
    losses = run(x, w, bias=bias, reduction="none", **given)
    share = torch.randn(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(dtype)
    grads = torch.autograd.grad(losses, (x, w, bias), share, allow_unused=True, materialize_grads=True)
    return [losses.detach(), *grads]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_kernels_equal_the_definition_in_float64(sharing: str, kind: str) -> None:
    """Blocks are of 16, pieces of 32 rows: there are several of each, and the last ones are not full."""
    width = 20 if kind in ("softmax", "bce") else 9  # in one product, and in two
    leaves, arguments = _inputs(sharing, kind, 6 if sharing == "rows" else 35, 4, width, 3, 21)
    found, expected = (_run(run, leaves, arguments, torch.float64) for run in (sampled_loss, sampled_loss_reference))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["logq", "gbce"])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_the_kernels_equal_the_definition_in_float32(sharing: str, kind: str) -> None:
    leaves, arguments = _inputs(sharing, kind, 6, 3, 16, 2, 16)
    found = _run(sampled_loss, leaves, arguments, torch.float32)
    expected = _run(sampled_loss_reference, leaves, arguments, torch.float64)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(0, 3, 4, 2, 5), (1, 1, 1, 1, 1), (2, 2, 5, 2, 0), (1, 2, 256, 1, 1)])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_odd_sizes_equal_the_definition(sharing: str, size: tuple[int, int, int, int, int]) -> None:
    leaves, arguments = _inputs(sharing, "logq", *size)
    found, expected = (_run(run, leaves, arguments, torch.float64) for run in (sampled_loss, sampled_loss_reference))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sharing", ["all", "rows"])
def test_large_logits_neither_overflow_nor_vanish(sharing: str, kind: str) -> None:
    leaves, arguments = _inputs(sharing, kind, 5, 3, 8, 1, 7)
    leaves[0] = leaves[0] * 500
    found, expected = (_run(run, leaves, arguments, torch.float64) for run in (sampled_loss, sampled_loss_reference))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11 * float(b.abs().max()))


@pytest.mark.parametrize("kind", ["softmax", "logq"])
@pytest.mark.parametrize("sharing", ["all", "rows"])
def test_a_highest_logit_that_comes_in_a_later_block_counts_as_such(sharing: str, kind: str) -> None:
    leaves, arguments = _inputs(sharing, kind, 2, 40, 1, 1, 40)
    x, w = torch.ones(2, 1, dtype=torch.float64), torch.arange(40, dtype=torch.float64)[:, None] / 4
    arguments["negatives"] = torch.arange(40) if sharing == "all" else torch.arange(40).expand(2, 40)
    found, expected = (run(x, w, reduction="none", **arguments) for run in (sampled_loss, sampled_loss_reference))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_constant_added_to_every_bias_changes_no_softmax(sharing: str) -> None:
    """Rows and slots that are not there have the logit of the bias alone: it must not overflow."""
    leaves, arguments = _inputs(sharing, "softmax", 3, 3, 4, 2, 5)
    shifted = [*leaves[:2], leaves[2] + 1000.0]
    pairs = zip(*(_run(sampled_loss, given, arguments, torch.float64) for given in (leaves, shifted)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_only_what_needs_a_gradient_gets_one(sharing: str) -> None:
    leaves, arguments = _inputs(sharing, "softmax", 2, 2, 4, 2, 3)
    for number in range(3):
        given = [leaf.clone().requires_grad_(number == place) for place, leaf in enumerate(leaves)]
        torch.autograd.backward(sampled_loss(given[0], given[1], bias=given[2], **arguments))
        assert [leaf.grad is not None for leaf in given] == [number == place for place in range(3)]


def test_the_mean_over_rows_is_that_of_the_definition() -> None:
    leaves, arguments = _inputs("all", "bce", 5, 4, 3, 1, 6)
    x, w, bias = leaves
    for reduction in ("mean", "sum"):
        found, expected = (
            run(x, w, bias=bias, reduction=reduction, **arguments) for run in (sampled_loss, sampled_loss_reference)
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_an_id_of_no_item_gives_nan_for_its_row_alone_where_ids_are_not_checked(sharing: str) -> None:
    from recsys.kernels.sampled_loss.triton_path import TritonPath

    leaves, arguments = _inputs(sharing, "softmax", 4, 5, 3, 4, 6)
    groups = torch.tensor([0, 1, 2, 9]) if sharing == "groups" else None
    target, negatives = torch.tensor([0, 5, 1, 2]), arguments["negatives"]
    if sharing != "all":
        negatives[2, 1] = 7
    x, w, bias = leaves
    losses, _ = TritonPath(x, w, bias, target, negatives, groups, None, "softmax").forward(1.0)
    assert losses.isnan().tolist() == [False, True, sharing != "all", sharing == "groups"]


def test_wide_rows_are_refused_where_the_path_is_forced() -> None:
    x, w, ids = torch.zeros(1, 257), torch.zeros(2, 257), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="x has D=257, and RECSYS_KERNELS=triton; wanted at most 256"):
        sampled_loss(x, w, ids, ids)

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.search import search_topk, topk_attend, torch_attend
from recsys.kernels.search.search_topk import _search_topk
from recsys.kernels.search.topk_attend import _topk_attend
from tests.kernels.search.cases import search_case


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.sampled_from([0, 1, 2, 17]), st.sampled_from([0, 1, 2, 17, 63, 100])), max_size=5),
    D=st.sampled_from([1, 8, 50]),
    D2=st.sampled_from([None, 1, 9]),
    Dv=st.sampled_from([1, 12]),
    H=st.sampled_from([None, 1, 3]),
    top_k=st.sampled_from([1, 5, 20]),
    has_bias=st.booleans(),
    size=st.sampled_from([1.0, 30.0]),
    numbers=st.sampled_from([1, 500, 1 << 20]),
    seed=st.integers(0, 99),
)
def test_it_equals_its_definition_in_value_and_gradient(
    lengths: list[tuple[int, int]],
    D: int,
    D2: int | None,
    Dv: int,
    H: int | None,
    top_k: int,
    has_bias: bool,
    size: float,
    numbers: int,
    seed: int,
) -> None:
    len_c, len_k = [c for c, _ in lengths], [n for _, n in lengths]
    case = search_case(
        len_c, len_k, D=D, D2=D2, Dv=Dv, H=H, top_k=top_k, has_bias=has_bias, is_integer=False, size=size, seed=seed
    )
    idx, _ = case.search("reference")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_attend, "NUMBERS", numbers)
        found = case.attend("torch", idx)
    for one, other in zip(found, case.attend("reference", idx), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10 * size**2)


@pytest.mark.parametrize("has_all", [True, False])
def test_gradients_are_those_of_finite_differences(has_all: bool) -> None:
    case = search_case([2, 1], [6, 3], D=3, D2=2, Dv=2, H=2, top_k=4, has_bias=True, is_integer=False)
    idx, _ = case.search("torch")
    names = ["q2", "k2", "k_bias"] if has_all else []
    leaves = [x.requires_grad_() for x in (case.q, case.k, case.v, *(case.optional[name] for name in names))]

    def run(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        return topk_attend(q, k, v, idx, case.meta_c, case.meta_k, scale=0.5, **dict(zip(names, rest, strict=True)))  # type: ignore[arg-type]  # tensors alone, by name

    assert torch.autograd.gradcheck(run, leaves)


def test_it_is_full_attention_where_all_are_kept() -> None:
    case = search_case([2, 1], [9, 5], top_k=9, is_integer=False)
    idx, _ = case.search("torch")
    out = case.attend("torch", idx)[0]
    for c, i in ((slice(0, 2), slice(0, 9)), (slice(2, 3), slice(9, 14))):
        wanted = (0.5 * case.q[c] @ case.k[i].t()).softmax(1) @ case.v[i]
        torch.testing.assert_close(out[c], wanted)


def test_gradients_reach_the_kept_rows_alone() -> None:
    case = search_case([2, 2], [40, 30], D2=4, top_k=3, has_bias=True, is_integer=False)
    idx, _ = case.search("torch")
    start = torch.tensor([0, 0, 40, 40])[:, None]
    kept = torch.zeros(70, dtype=torch.bool)
    kept[(idx + start).flatten()] = True
    _, _, dk, dv, _, dk2, dbias = case.attend("torch", idx)
    for grad in (dk, dv, dk2, dbias[:, None]):
        assert torch.equal(grad.abs().sum(1) > 0, kept)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_a_candidate_that_keeps_nothing_gets_zero_and_no_gradient(backend: str) -> None:
    case = search_case([1, 1, 1], [0, 2, 0], top_k=3, is_integer=False)
    idx, _ = case.search(backend)
    out, dq, dk, dv = case.attend(backend, idx)
    assert (out == 0).all(1).tolist() == [True, False, True]
    assert (dq == 0).all(1).tolist() == [True, False, True]
    assert all(bool(grad.isfinite().all()) for grad in (dk, dv))


def test_nan_outside_the_kept_rows_leaks_nowhere() -> None:
    case = search_case([2, 1, 1], [20, 3, 10], top_k=4, is_integer=False)
    idx, _ = case.search("torch")
    before = case.attend("torch", idx)
    kept = torch.zeros(33, dtype=torch.bool)
    kept[(idx + torch.tensor([0, 0, 20, 23])[:, None])[idx >= 0]] = True
    case.k[~kept] = torch.nan
    case.v[~kept] = torch.nan
    for one, other in zip(before, case.attend("torch", idx), strict=True):
        assert torch.equal(one, other)


def test_nan_of_a_candidate_reaches_no_row_that_it_does_not_keep() -> None:
    case = search_case([1, 1], [5, 1], D2=2, top_k=3, has_bias=True, is_integer=False)
    idx, _ = case.search("reference")
    case.q[1] = torch.nan
    _, _, dk, dv, _, dk2, dbias = case.attend("torch", idx)
    for grad in (dk, dv, dk2, dbias):
        assert bool(grad[:5].isfinite().all())
        assert bool(grad[5].isnan().any())


def test_places_may_be_shared_by_heads_and_be_of_either_integer() -> None:
    case = search_case([3], [12], H=2, is_integer=False)
    idx = torch.tensor([[0, 3, -1], [11, 2, 4], [-1, -1, 5]], dtype=torch.int32)
    shared = case.attend("torch", idx)
    for one, other in zip(shared, case.attend("torch", idx.long()[:, None].expand(3, 2, 3)), strict=True):
        assert torch.equal(one, other)


def test_many_candidates_give_the_same_gradients_twice() -> None:
    case = search_case([300], [40], top_k=10, is_integer=False, dtype=torch.float32)
    idx, _ = case.search("torch")
    first = case.attend("torch", idx)
    for _ in range(5):
        assert all(torch.equal(one, other) for one, other in zip(first, case.attend("torch", idx), strict=True))


def test_bfloat16_errs_little_more_than_its_rounding() -> None:
    case = search_case([4, 3], [50, 70], D2=8, has_bias=True, is_integer=False, dtype=torch.bfloat16)
    idx, _ = case.search("torch")
    wide = type(case)(
        case.q.double(),
        case.k.double(),
        case.v.double(),
        case.meta_c,
        case.meta_k,
        case.top_k,
        {name: x.double() if torch.is_tensor(x) else x for name, x in case.optional.items()},
    )
    for one, other in zip(case.attend("torch", idx), wide.attend("reference", idx), strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.double() - other).abs().max() <= 2**-7 * other.abs().max()


def test_both_stages_compile_whole_for_batches_of_any_shape() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def stages(q: Tensor, k: Tensor, v: Tensor, meta_c: JaggedMeta, meta_k: JaggedMeta, **second: Any) -> Tensor:
        idx, _ = search_topk(q, k, meta_c, meta_k, 5, **second)
        return topk_attend(q, k, v, idx, meta_c, meta_k, **second)

    compiled = torch.compile(stages, fullgraph=True, backend=counter)
    for n in range(10):
        case = search_case([3 + n, 3], [40 - n, 60 + 2 * n], D2=4, is_integer=False, seed=n)
        second = {name: case.optional[name] for name in ("q2", "k2")}
        inputs = q, k, v = [x.detach().clone().requires_grad_() for x in (case.q, case.k, case.v)]
        out = compiled(q, k, v, case.meta_c, case.meta_k, **second)
        plain = stages(q, k, v, case.meta_c, case.meta_k, **second)
        assert torch.equal(out, plain)
        grads, wanted = (torch.autograd.grad(x.sum(), inputs) for x in (out, plain))
        assert all(torch.equal(one, other) for one, other in zip(grads, wanted, strict=True))
    assert counter.frame_count <= 2


def test_fake_tensors_have_the_shapes_of_real_ones() -> None:
    case = search_case([2, 1], [6, 3], H=2, D2=3, top_k=4, has_bias=True, is_integer=False)
    meta, more = (case.meta_c.offsets, case.meta_k.offsets), (case.optional["q2"], case.optional["k2"])
    leaves = [x.requires_grad_() for x in (case.q, case.v, case.k)]
    found = torch.library.opcheck(
        _search_topk, (case.q.detach(), 4, case.k.detach(), *meta, 2, 6, 0.5, *more, 1.0, None)
    )
    idx, _ = case.search("torch")
    bias = case.optional["k_bias"].requires_grad_()
    found |= torch.library.opcheck(_topk_attend, (*leaves, idx, *meta, 0.5, *more, 0.25, bias))
    assert set(found.values()) == {"SUCCESS"}


def test_wrong_arguments_are_refused_by_name() -> None:
    case = search_case([2, 1], [5, 3], dtype=torch.float32)
    idx, _ = case.search("torch")

    def refused(line: str, idx: Tensor, v: Tensor = case.v) -> None:
        with pytest.raises(ValueError, match=line):
            topk_attend(case.q, case.k, v, idx, case.meta_c, case.meta_k)

    refused(r"idx is torch.float32; wanted int32 or int64", idx.float())
    refused(r"idx has the shape \(2, 5\); wanted \(3, K\)", idx[:2])
    refused(r"idx has the shape \(3, 1, 5\); wanted \(3, K\)", idx[:, None])
    refused(r"v has the shape \(7, 8\), k has \(8, 8\)", idx, case.v[:7])
    refused(r"q is torch.float32, v is torch.float64", idx, case.v.double())
    past = idx.clone()
    past[2, 0] = 3
    refused(r"idx\[2, 0, 0\]=3 \(candidate, head, kept\), but its sequence has 3 behaviours", past)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_nothing_to_attend_to_gives_zero(backend: str) -> None:
    case = search_case([2], [5], top_k=3, is_integer=False)
    out, *grads = case.attend(backend, torch.zeros(2, 0, dtype=torch.int32))
    assert not out.any()
    assert not any(grad.any() for grad in grads)

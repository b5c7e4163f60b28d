import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.kernels.jagged import JaggedMeta
from recsys.kernels.search import search_topk, torch_search
from tests.kernels.search.cases import search_case

LENGTHS = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 17]), st.sampled_from([0, 1, 2, 17, 31, 32, 33, 63, 200, 257])), max_size=6
)


@settings(max_examples=150, deadline=None)
@given(
    lengths=LENGTHS,
    D=st.sampled_from([1, 8, 50]),
    D2=st.sampled_from([None, 1, 9]),
    H=st.sampled_from([None, 1, 3]),
    top_k=st.sampled_from([1, 2, 5, 20, 256]),
    has_bias=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    cells=st.sampled_from([1, 300, 1 << 19]),
    seed=st.integers(0, 99),
)
def test_every_tie_falls_as_the_definition_says(
    lengths: list[tuple[int, int]],
    D: int,
    D2: int | None,
    H: int | None,
    top_k: int,
    has_bias: bool,
    dtype: torch.dtype,
    cells: int,
    seed: int,
) -> None:
    len_c, len_k = [c for c, _ in lengths], [n for _, n in lengths]
    case = search_case(len_c, len_k, D=D, D2=D2, H=H, top_k=top_k, has_bias=has_bias, dtype=dtype, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_search, "CELLS", cells)
        found = case.search("torch")
    for one, other in zip(found, case.search("reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_scores_are_those_of_a_dense_product(dtype: torch.dtype, size: float) -> None:
    case = search_case([3, 1], [1000, 63], D=24, D2=5, top_k=7, has_bias=True, is_integer=False, size=size, dtype=dtype)
    idx, score = case.search("torch")
    wide = search_case([3, 1], [1000, 63], D=24, D2=5, top_k=7, has_bias=True, is_integer=False, size=size)
    q2, k2, bias = (wide.optional[name] for name in ("q2", "k2", "k_bias"))
    dense = 0.5 * wide.q[:3] @ wide.k[:1000].t() + 0.25 * q2[:3] @ k2[:1000].t() + bias[:1000]
    best, _ = dense.topk(7)
    bound = (1e-5 if dtype == torch.float32 else 1e-13) * size**2
    torch.testing.assert_close(score[:3].double(), best, rtol=0, atol=10 * bound)
    torch.testing.assert_close(dense.gather(1, idx[:3].long()), best, rtol=0, atol=10 * bound)


def test_equal_scores_keep_the_order_of_time() -> None:
    meta_c, meta_k = JaggedMeta.from_lengths([1]), JaggedMeta.from_lengths([400])
    idx, score = search_topk(torch.ones(1, 4), torch.ones(400, 4), meta_c, meta_k, 6)
    assert idx.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert score.tolist() == [[2.0] * 6]


@pytest.mark.parametrize("n", [6, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_nan_comes_last_and_the_zeros_tie(backend: str, dtype: torch.dtype, n: int) -> None:
    k = torch.full((n, 1), -torch.inf, dtype=dtype)
    k[:6, 0] = torch.tensor([torch.nan, -0.0, 0.0, -torch.inf, torch.inf, -0.0])
    case = search_case([1], [n], D=1, top_k=6, dtype=dtype)
    case.q.fill_(1.0)
    case.k.copy_(k)
    idx, score = case.search(backend)
    assert idx.tolist() == [[4, 1, 2, 5, 3, 0 if n == 6 else 6]]
    assert score[0, :5].tolist() == [math.inf, 0.0, 0.0, 0.0, -math.inf]
    assert math.copysign(1.0, float(score[0, 1])) == 1.0
    assert bool(score[0, 5].isnan()) == (n == 6)


def test_a_short_sequence_is_padded_by_minus_one() -> None:
    case = search_case([1, 2, 1], [2, 0, 1], top_k=3)
    idx, score = case.search("torch")
    assert (idx < 0).tolist() == [[False, False, True], [True] * 3, [True] * 3, [False, True, True]]
    assert torch.equal(score == -torch.inf, idx < 0)
    assert idx.dtype == torch.int32


def test_neither_neighbours_nor_their_nan_change_an_answer() -> None:
    case = search_case([2, 3, 1], [300, 41, 8], top_k=4)
    idx, score = case.search("torch")
    case.k[:300] = torch.nan
    case.q[:2] = torch.nan
    one, other = case.search("torch")
    assert torch.equal(one[2:], idx[2:])
    assert torch.equal(other[2:], score[2:])
    alone = search_topk(
        case.q[2:5], case.k[300:341], JaggedMeta.from_lengths([3]), JaggedMeta.from_lengths([41]), 4, scale=0.5
    )
    assert torch.equal(alone[0], idx[2:5])


def test_views_of_one_projection_need_no_copy_by_the_caller() -> None:
    case = search_case([2, 1], [70, 9], D=8, D2=8, H=2, top_k=4)
    wide = torch.cat([case.k, case.optional["k2"]], 2)  # (Tk, H, 16)
    strided = search_case([2, 1], [70, 9], D=8, D2=8, H=2, top_k=4)
    strided = type(case)(
        case.q.transpose(0, 1).contiguous().transpose(0, 1),
        wide[..., :8],
        case.v,
        case.meta_c,
        case.meta_k,
        4,
        {**strided.optional, "k2": wide[..., 8:]},
    )
    assert torch.equal(strided.search("torch")[0], case.search("torch")[0])


def test_no_gradient_comes_back() -> None:
    case = search_case([1], [9], dtype=torch.float32)
    idx, score = search_topk(case.q.requires_grad_(), case.k, case.meta_c, case.meta_k, 3)
    assert not score.requires_grad
    assert not idx.requires_grad


def test_wrong_arguments_are_refused_by_name() -> None:
    case = search_case([2, 1], [5, 3], dtype=torch.float32)
    q, k, meta_c, meta_k = case.q, case.k, case.meta_c, case.meta_k
    one = JaggedMeta.from_lengths([3])

    def refused(line: str, *tensors: Any, **optional: Any) -> None:
        with pytest.raises(ValueError, match=line):
            search_topk(*tensors, **{"top_k": 2, **optional})

    refused(r"top_k=257; wanted an integer from 1 to 256", q, k, meta_c, meta_k, top_k=257)
    refused(r"scale=inf; wanted a finite number", q, k, meta_c, meta_k, top_k=1, scale=float("inf"))
    refused(r"top_k=0; wanted", q, k, meta_c, meta_k, top_k=0)
    refused(r"q has the shape \(3, 8\), k has \(8, 4\)", q, k[:, :4], meta_c, meta_k)
    refused(r"q has the width 300; wanted 1 to 256", q.new_zeros(3, 300), q.new_zeros(8, 300), meta_c, meta_k)
    refused(r"q has 3 rows, meta_c has 8 tokens", q, k, meta_k, meta_k)
    refused(r"meta_c has 1 sequences, meta_k has 2", q, k, one, meta_k)
    refused(r"q is torch.float32, k is torch.float64", q, k.double(), meta_c, meta_k)
    refused(r"q is torch.int64; wanted a floating dtype", q.long(), k.long(), meta_c, meta_k)
    refused(r"k2 is missing; wanted both", q, k, meta_c, meta_k, q2=q)
    refused(r"scale2=0.5 without q2", q, k, meta_c, meta_k, scale2=0.5)
    refused(r"q2 has the shape \(2, 8\), q has \(3, 8\)", q, k, meta_c, meta_k, q2=q[:2], k2=k)
    refused(r"k_bias has the shape \(3,\) in torch.float32; wanted \(8,\)", q, k, meta_c, meta_k, k_bias=q[:, 0])
    refused(r"q is on cpu, k is on meta", q, k.to("meta"), meta_c, meta_k)


def test_lengths_that_are_no_meta_are_refused() -> None:
    q, meta = torch.zeros(3, 4), JaggedMeta.from_lengths([3])
    wrong: Any = [3]
    with pytest.raises(TypeError, match=r"meta_c is list; wanted JaggedMeta.from_lengths\(lengths\)"):
        search_topk(q, q, wrong, meta, 1)

import math

import pytest
import torch

from tests.kernels.search.cases import SearchCase, search_case

ONE_EACH = ([1, 1, 1, 1], [17, 0, 150, 63])  # candidates and behaviours
GROUPS = ([17, 0, 1, 2], [63, 4, 0, 150])
DTYPES = [torch.float32, torch.float64]


def _wide(case: SearchCase) -> SearchCase:
    optional = {name: x.double() if torch.is_tensor(x) else x for name, x in case.optional.items()}
    q, k, v = (x.double() for x in (case.q, case.k, case.v))
    return SearchCase(q, k, v, case.meta_c, case.meta_k, case.top_k, optional)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [ONE_EACH, GROUPS], ids=["one each", "groups"])
@pytest.mark.parametrize(("D", "D2", "H", "top_k", "has_bias"), [(8, None, None, 5, False), (33, 9, 2, 33, True)])
def test_the_search_breaks_every_tie_as_the_definition_does(
    dtype: torch.dtype,
    lengths: tuple[list[int], list[int]],
    D: int,
    D2: int | None,
    H: int | None,
    top_k: int,
    has_bias: bool,
) -> None:
    case = search_case(*lengths, D=D, D2=D2, H=H, top_k=top_k, has_bias=has_bias, dtype=dtype)
    for one, other in zip(case.search("triton"), case.search("reference"), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("len_c", "size"), [([1, 1], 1.0), ([3, 2], 100.0)])
def test_scores_are_exact_but_for_rounding(dtype: torch.dtype, len_c: list[int], size: float) -> None:
    case = search_case(
        len_c, [100, 30], D=70, D2=5, top_k=8, has_bias=True, is_integer=False, size=size, dtype=dtype, seed=3
    )
    idx, score = case.search("triton")
    wanted_idx, wanted = _wide(case).search("reference")
    assert torch.equal(idx, wanted_idx)
    bound = (1e-5 if dtype == torch.float32 else 1e-13) * size**2
    assert (score.double() - wanted).abs().max() <= bound * 10


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # 0 x inf in the padded width
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num", [1, 2])
def test_nan_comes_last_and_the_zeros_tie(dtype: torch.dtype, num: int) -> None:
    case = search_case([num], [6], D=1, top_k=8, dtype=dtype)
    case.q.fill_(1.0)
    case.k[:, 0] = torch.tensor([torch.nan, -0.0, 0.0, -torch.inf, torch.inf, -0.0])
    idx, score = case.search("triton")
    assert idx.tolist() == [[4, 1, 2, 5, 3, 0, -1, -1]] * num
    assert score[0, :5].tolist() == [math.inf, 0.0, 0.0, 0.0, -math.inf]
    assert math.isnan(float(score[0, 5]))
    assert score[0, 6:].tolist() == [-math.inf] * 2


@pytest.mark.parametrize(("dtype", "tiny"), [(torch.float32, 1e-30), (torch.float64, 1e-200)])
def test_scores_that_vanish_from_either_side_tie(dtype: torch.dtype, tiny: float) -> None:
    case = search_case([1], [3], D=1, top_k=3, dtype=dtype)
    case.q.fill_(1.0)
    case.k[:, 0] = torch.tensor([-tiny, tiny, -tiny], dtype=dtype)
    case.optional["scale"] = tiny
    idx, _ = case.search("triton")
    assert idx.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("top_k", [100, 256])
def test_many_are_kept(top_k: int) -> None:
    case = search_case([1], [300], D=8, top_k=top_k, dtype=torch.float32)
    for one, other in zip(case.search("triton"), case.search("reference"), strict=True):
        assert torch.equal(one, other)


def test_an_empty_batch_has_no_answer() -> None:
    case = search_case([], [], dtype=torch.float32)
    assert case.search("triton")[0].shape == (0, 5)


@pytest.mark.parametrize(
    ("dtype", "bound", "size"),
    [(torch.float32, 1e-5, 1.0), (torch.float64, 1e-12, 1.0), (torch.float64, 1e-12, 10.0)],
)
@pytest.mark.parametrize(
    ("D", "D2", "Dv", "H", "has_bias"), [(8, None, 12, None, False), (24, 5, 40, 2, True)], ids=["plain", "all"]
)
def test_attention_and_its_gradients_equal_the_definition(
    dtype: torch.dtype, bound: float, size: float, D: int, D2: int | None, Dv: int, H: int | None, has_bias: bool
) -> None:
    case = search_case(
        [1, 0, 1, 2],
        [20, 4, 0, 9],
        D=D,
        D2=D2,
        Dv=Dv,
        H=H,
        top_k=18,
        has_bias=has_bias,
        is_integer=False,
        size=size,
        dtype=dtype,
    )
    idx, _ = _wide(case).search("reference")
    idx = idx.flip(-1)  # the highest score comes last
    for one, other in zip(case.attend("triton", idx), _wide(case).attend("reference", idx), strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).abs().max() <= bound * size**2 * max(1.0, float(other.abs().max()))


def test_a_row_that_many_keep_gets_the_sum() -> None:
    case = search_case([20], [3], top_k=2, is_integer=False, dtype=torch.float64)
    idx, _ = case.search("reference")
    for one, other in zip(case.attend("triton", idx), case.attend("reference", idx), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_nan_outside_the_kept_rows_leaks_nowhere() -> None:
    case = search_case([2, 1], [20, 3], D2=4, top_k=4, has_bias=True, is_integer=False)
    idx, _ = case.search("reference")
    before = case.attend("triton", idx)
    kept = torch.zeros(23, dtype=torch.bool)
    kept[(idx + torch.tensor([0, 0, 20])[:, None])[idx >= 0]] = True
    for x in (case.k, case.v, case.optional["k2"], case.optional["k_bias"]):
        x[~kept] = torch.nan
    for one, other in zip(before, case.attend("triton", idx), strict=True):
        assert torch.equal(one, other)


def test_nan_of_a_candidate_reaches_no_row_that_it_does_not_keep() -> None:
    case = search_case([1, 1], [5, 1], D2=2, top_k=3, has_bias=True, is_integer=False)
    idx, _ = case.search("reference")
    case.q[1] = torch.nan
    _, _, dk, dv, _, dk2, dbias = case.attend("triton", idx)
    for grad in (dk, dv, dk2, dbias):
        assert bool(grad[:5].isfinite().all())
        assert bool(grad[5].isnan().any())


def test_an_empty_place_weighs_nothing_beside_very_low_scores() -> None:
    case = search_case([2], [3], top_k=5, has_bias=True, is_integer=False)
    case.optional["k_bias"].fill_(-2_000.0)
    idx, _ = case.search("reference")
    assert (idx < 0).any()
    for one, other in zip(case.attend("triton", idx), case.attend("reference", idx), strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

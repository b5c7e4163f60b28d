"""Both stages of search on a GPU, where the interpreter can say nothing: tensor cores, races, 16-bit floats."""

import pytest
import torch

from tests.kernels.search.cases import SearchCase, search_case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTHS = [16, 32, 50, 64, 128, 256]


def _wide(case: SearchCase) -> SearchCase:
    optional = {name: x.double() if torch.is_tensor(x) else x for name, x in case.optional.items()}
    q, k, v = (x.double() for x in (case.q, case.k, case.v))
    return SearchCase(q, k, v, case.meta_c, case.meta_k, case.top_k, optional)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("top_k", [1, 20, 64, 100, 256])
@pytest.mark.parametrize("len_c", [[1, 1, 1], [17, 0, 40]])
def test_every_tie_falls_as_the_definition_says(dtype: torch.dtype, D: int, top_k: int, len_c: list[int]) -> None:
    case = search_case(len_c, [63, 5000, 20_000], D=D, D2=16, top_k=top_k, has_bias=True, dtype=dtype, device="cuda")
    for one, other in zip(case.search("triton"), case.search("reference"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("size", [1.0, 8.0])
def test_attention_errs_little_more_than_torch(dtype: torch.dtype, D: int, size: float) -> None:
    case = search_case(
        [5, 0, 300, 1],
        [700, 9, 2000, 0],
        D=D,
        D2=16,
        H=2,
        top_k=50,
        has_bias=True,
        is_integer=False,
        size=size,
        dtype=dtype,
        device="cuda",
    )
    idx, _ = case.search("triton")
    exact = _wide(case).attend("reference", idx)
    plain = case.attend("reference", idx)
    for place, (one, other, wanted) in enumerate(zip(case.attend("triton", idx), plain, exact, strict=True)):
        bound = (other.double() - wanted).abs().max() * (2 if place == 0 else 3)
        assert (one.double() - wanted).abs().max() <= bound + 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_stages_repeat_to_the_last_bit(dtype: torch.dtype) -> None:
    case = search_case(
        [300, 40], [3000, 5], D=64, top_k=50, has_bias=True, is_integer=False, dtype=dtype, device="cuda"
    )
    first_search = case.search("triton")
    first = case.attend("triton", first_search[0])
    for _ in range(20):
        assert all(torch.equal(one, other) for one, other in zip(case.search("triton"), first_search, strict=True))
        again = case.attend("triton", first_search[0])
        assert all(torch.equal(one, other) for one, other in zip(again, first, strict=True))


def test_rows_behind_two_billion_numbers_are_found() -> None:
    if torch.cuda.get_device_properties(0).total_memory < 24 * 2**30:
        pytest.skip("needs 24 GiB of GPU memory")
    num, D = 2**31 // 256 + 1000, 256
    case = search_case([1, 1], [4, 4], D=D, dtype=torch.bfloat16, device="cuda")
    k = torch.zeros(num, D, dtype=torch.bfloat16, device="cuda")
    k[-3:] = case.k[:3]
    far = SearchCase(
        case.q,
        k,
        k,
        case.meta_c,
        type(case.meta_k).from_lengths([num - 3, 3], "cuda"),
        3,
        {"scale": 0.5},
    )
    idx, score = far.search("triton")
    wanted = 0.5 * (case.q[1].float() * case.k[:3].float()).sum(1)
    assert torch.equal(score[1], wanted.sort(descending=True).values)
    assert sorted(idx[1].tolist()) == [0, 1, 2]

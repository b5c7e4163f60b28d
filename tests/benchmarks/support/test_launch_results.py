"""When two launches computed the same: rounding is, anything more is not."""

import pytest
import torch

from benchmarks.support.kernel_cases import cases_of
from benchmarks.support.launch_results import TOLERANCE, difference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_is_no_difference_and_one_wrong_cell_is(dtype: torch.dtype) -> None:
    wanted = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    rounded = (wanted.double() * (1 + torch.finfo(dtype).eps)).to(dtype)
    assert difference([wanted, rounded], [wanted, wanted]) is None
    wrong = wanted.clone()
    wrong[399, 63] += 4 * TOLERANCE[dtype] * (1 + wanted[399, 63].abs())
    assert str(difference([wanted, wrong], [wanted, wanted])).startswith("tensor 1: off by")


def test_small_numbers_are_held_to_their_own_size() -> None:
    wanted = torch.full((10,), 1e-12)
    assert difference([wanted * 1.5], [wanted]) is not None
    assert difference([torch.zeros(10)], [torch.zeros(10)]) is None
    assert difference([wanted], [torch.zeros(10)]) is not None


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_none_is_right_where_both_have_it(odd: float) -> None:
    wanted, found = torch.ones(3), torch.tensor([1.0, 1.0, odd])
    assert difference([found], [found.clone()]) is None
    assert difference([found], [wanted]) is not None
    assert difference([wanted], [found]) is not None


def test_indices_may_differ_where_scores_are_as_good_as_equal() -> None:
    wanted = torch.arange(1000)
    swapped = wanted.clone()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert difference([swapped], [wanted]) is None
    assert difference([wanted + 1], [wanted]) is not None


def test_missing_tensors_and_other_shapes_differ() -> None:
    one = torch.ones(3)
    assert difference([one], [one, one]) == "1 tensors, wanted 2"
    assert difference([one], [torch.ones(2)]) is not None
    assert difference([one], [one.double()]) is not None


@pytest.mark.parametrize(
    "op", ["attention", "linear_cross_entropy", "sampled_loss", "jagged_embedding", "search_topk", "topk_attend"]
)
def test_a_case_gives_the_same_results_and_gradients_from_one_seed(op: str) -> None:
    case = next(case for case in cases_of(op) if "fp32 64" in case.name)
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        found.append(case.run(torch.device("cpu"), False))
    assert difference(*found) is None
    assert len(found[0]) >= 2
    torch.manual_seed(1)
    assert difference(case.run(torch.device("cpu"), False), found[0]) is not None

import pytest
import torch
from torch import Tensor

from recsys.kernels.segment_sum import SegmentOrder, segment_sum, segment_sum_reference


def _inputs(R: int, K: int, S: int, D: int, popular: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, numbers of which a share is 2 and some are of no segment, and weights."""
    generator = torch.Generator().manual_seed(R + K)
    x = torch.randn(R, D, generator=generator, dtype=torch.float64)
    ids = torch.randint(-1, S + 1, (R, K), generator=generator)
    ids[torch.rand(R, K, generator=generator) < popular] = 2
    return x, ids, torch.randn(R, K, generator=generator, dtype=torch.float64)


SIZES = [(0, 1, 3, 4), (1, 1, 4, 1), (63, 1, 5, 50), (17, 3, 4, 17), (40, 0, 3, 4), (17, 1, 3, 200), (9, 2, 0, 3)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_weights", [False, True])
def test_the_kernels_equal_the_definition(
    size: tuple[int, int, int, int], has_weights: bool, dtype: torch.dtype
) -> None:
    x, ids, weights = _inputs(*size)
    add_to = torch.ones(size[2], size[3], dtype=torch.float64) if has_weights else None
    given = weights.to(dtype) if has_weights else None
    found = segment_sum(x.to(dtype), ids, size[2], weights=given, scale=0.3, add_to=add_to)
    expected = 0.3 * segment_sum_reference(x, ids, size[2], weights=weights if has_weights else None)
    expected = expected if add_to is None else expected + add_to
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize(("before", "length"), [(0, 16), (0, 64), (5, 11), (5, 12), (16, 31), (16, 32), (3, 100)])
def test_a_segment_of_any_length_and_place_is_summed_once(before: int, length: int) -> None:
    """Chunks are of 16 pairs here: segments end before, at and behind their cuts."""
    ids = torch.repeat_interleave(torch.arange(3), torch.tensor([before, length, 4]))
    x = torch.randn(len(ids), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
    torch.testing.assert_close(segment_sum(x, ids, 3), segment_sum_reference(x, ids, 3), rtol=1e-12, atol=1e-12)


def test_an_order_made_before_gives_the_same_bits() -> None:
    x, ids, weights = _inputs(40, 2, 5, 6)
    order = SegmentOrder.of(ids, 5)
    assert torch.equal(segment_sum(x, ids, 5, weights=weights, order=order), segment_sum(x, ids, 5, weights=weights))


def test_rows_of_no_segment_are_not_read() -> None:
    x = torch.ones(6, 2, dtype=torch.float64)
    x[:3] = float("nan")
    ids = torch.tensor([-1, 4, 99, 0, 1, 1])
    assert segment_sum(x, ids, 3).tolist() == [[1.0, 1.0], [2.0, 2.0], [0.0, 0.0]]


def test_rows_that_are_not_contiguous_are_taken_as_they_look() -> None:
    x, ids, _ = _inputs(20, 1, 4, 6)
    torch.testing.assert_close(segment_sum(x[:, ::2], ids, 4), segment_sum_reference(x[:, ::2], ids, 4))

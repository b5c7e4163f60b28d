import pytest
import torch
from torch import Tensor

from recsys.kernels.attention.dropout import column_hash, drop, dropped, row_hash


def _hashes(seed: int, sequence: int, length: int, num_heads: int = 1) -> tuple[Tensor, Tensor]:
    places = torch.arange(length)
    sequences = torch.full_like(places, sequence)
    return row_hash(seed, sequences, places, num_heads).t(), column_hash(seed, sequences, places, num_heads).t()


@pytest.mark.parametrize("dropout_p", [0.001, 0.1, 0.5, 0.9])
def test_the_share_dropped_is_as_asked(dropout_p: float) -> None:
    share = dropped(*_hashes(1, 0, 1000), dropout_p).double().mean().item()
    assert share == pytest.approx(dropout_p, abs=5 * (dropout_p * (1 - dropout_p) / 1e6) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dropout_p", [1e-12, 0.1, 0.37, 1 - 1e-12])
@pytest.mark.parametrize("in_place", [False, True])
def test_weights_are_zero_where_dropped_and_untouched_elsewhere(
    dtype: torch.dtype, dropout_p: float, in_place: bool
) -> None:
    rows, columns = _hashes(7, 3, 200, 2)
    weights = torch.randn(2, 200, 200, dtype=dtype)
    expected, given = weights.masked_fill(dropped(rows, columns, dropout_p), 0), weights.clone()
    found = drop(given, rows, columns, dropout_p, in_place=in_place)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert torch.equal(given, expected if in_place else weights)


def test_seed_head_and_sequence_give_masks_that_agree_by_chance_alone() -> None:
    masks = [dropped(*_hashes(seed, b, 300, 2), 0.5)[h] for seed in (0, 1, 1 << 40) for b in (0, 1) for h in (0, 1)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one == other).double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_rows_columns_and_rectangles_of_a_mask_are_independent() -> None:
    sign = dropped(*_hashes(5, 2, 512), 0.5)[0].double() * 2 - 1
    for matrix in (sign, sign.t()):
        correlation = (matrix @ matrix.t() / 512).fill_diagonal_(0)
        assert correlation.abs().max().item() < 0.27  # 6 standard deviations
        assert correlation.square().mean().item() * 512 == pytest.approx(1, abs=0.05)
    rectangles = sign[:-1, :-1] * sign[1:, :-1] * sign[:-1, 1:] * sign[1:, 1:]
    assert rectangles.mean().item() == pytest.approx(0, abs=0.01)

import pytest
import torch

from recsys.kernels.launch import compiling_for, launch_of, table
from recsys.kernels.linear_cross_entropy import fused


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "interpret"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_width_has_a_launch_of_each_kernel(target: str, dtype: torch.dtype) -> None:
    for width in (0, 1, 16, 17, 50, 64, 100, 128, 200, 256):
        key = {"width": fused._block_width(width), "bytes": dtype.itemsize}
        assert width <= key["width"] <= 256
        with compiling_for(target):
            for kernel in ("forward", "backward"):
                assert {"BLOCK_M", "BLOCK_N", "num_warps", "num_stages"} == set(
                    launch_of(fused.OP, kernel, torch.device("cpu"), **key)
                )
            assert launch_of(fused.OP, "combine", torch.device("cpu"), **{**key, "bytes": 4})["BLOCK_M"] > 0


def test_the_table_has_a_part_for_each_architecture() -> None:
    assert set(table(fused.OP)) == {"sm_90", "sm_80", "interpret"}


@pytest.mark.parametrize(
    ("blocks", "tiles", "parts"), [(1, 1, 1), (1, 5, 4), (2, 100, 2), (3, 100, 1), (9, 100, 1), (1, 3, 3)]
)
def test_work_is_cut_only_where_programs_are_few(blocks: int, tiles: int, parts: int) -> None:
    assert fused._num_parts(blocks, tiles, torch.device("cpu")) == parts


def test_rows_that_count_come_first_in_their_order_and_wrong_targets_are_no_item() -> None:
    x, target = torch.arange(12.0).view(6, 2), torch.tensor([-100, 3, 2**32 + 1, -100, -1, 0])
    rows = fused._rows(x, target, -100, 4, torch.float32)
    assert rows.order.tolist() == [1, 2, 4, 5, 0, 3]
    assert rows.count.tolist() == [4]
    assert rows.target[:4].tolist() == [3, -1, -1, 0]
    assert torch.equal(rows.x, x[rows.order])


def test_rates_of_halves_fill_their_range_whatever_stands_in_ignored_rows() -> None:
    rates, unit = fused._rates(torch.tensor([1e-6, -4e-6, 7.0]), torch.tensor([2]), torch.float16)
    torch.testing.assert_close(rates[:2], torch.tensor([2.0**13, -(2.0**15)]))
    torch.testing.assert_close(rates[:2] * unit, torch.tensor([1e-6, -4e-6]))
    nothing, unit = fused._rates(torch.zeros(2), torch.tensor([2]), torch.float16)
    assert torch.equal(nothing * unit, torch.zeros(2))

"""Which kernels work out offsets in 32 bits."""

from typing import Any

import pytest
import torch

from benchmarks.support.compiled import Launch, compile_launch
from benchmarks.support.narrow_offsets import narrow_offsets
from recsys.kernels.backend import is_interpreting

pytest.importorskip("triton", reason="kernels are compiled by triton")
pytestmark = [pytest.mark.aot, pytest.mark.skipif(is_interpreting(), reason="the interpreter compiles nothing")]


def _found(name: str, *numbers: int, **constants: Any) -> list[str]:
    from tests.benchmarks import triton_examples

    x = torch.zeros(64)
    launch = Launch(getattr(triton_examples, name), (1,), (x, x, *numbers), {"BLOCK": 64, **constants})
    return narrow_offsets(compile_launch(launch, "sm_90").ttir)


@pytest.mark.parametrize("name", ["narrow_kernel", "late_kernel", "looped_kernel", "while_kernel"])
def test_a_product_of_two_numbers_of_run_time_in_32_bits_is_found(name: str) -> None:
    found = _found(name, 50, 17)
    assert len(found) == 1
    assert found[0].startswith("line ")
    assert "arith.muli" in found[0]


def test_a_tensor_of_rows_times_a_constant_width_is_found() -> None:
    (found,) = _found("wide_row_kernel", 50, WIDTH=24)
    assert "tensor<64xi32>" in found


def test_products_in_64_bits_and_of_constants_and_of_no_offset_pass() -> None:
    assert _found("row_kernel", 50, 17) == []


def test_a_stride_of_1_is_a_constant_of_the_specialisation() -> None:
    assert _found("narrow_kernel", 50, 1) == []


def test_a_tensor_times_a_constant_passes_where_it_is_bounded() -> None:
    assert _found("bucket_kernel", 50, SHIFT=23) == []
    assert len(_found("bucket_kernel", 50, SHIFT=1)) == 1

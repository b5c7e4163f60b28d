"""Launches that are recorded instead of made, and what is read off the compiled kernel."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.support.compiled import Launch, compile_launch, recorded_launches
from recsys.kernels.backend import is_interpreting
from recsys.kernels.launch import compile_target, tables_in

pytest.importorskip("triton", reason="kernels are compiled by triton")
pytestmark = [pytest.mark.aot, pytest.mark.skipif(is_interpreting(), reason="the interpreter compiles nothing")]

ROW = {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 2}


@pytest.fixture(autouse=True)
def _gram_table(tmp_path: Path) -> Iterator[None]:
    rows = {"width=32": ROW, "width=64": ROW | {"BLOCK_M": 128, "num_warps": 8}, "width=16": ROW | {"BLOCK_M": 16}}
    (tmp_path / "gram.json").write_text(json.dumps({arch: {"forward": rows} for arch in ("sm_80", "sm_90")}))
    with tables_in(tmp_path):
        yield


def _gram_launch(width: int, dtype: torch.dtype = torch.bfloat16, target: str = "sm_90", offset: int = 0) -> Launch:
    from tests.benchmarks.triton_examples import gram

    with recorded_launches(target) as recording:
        gram(torch.zeros(40 * width + offset, dtype=dtype)[offset:].view(40, width))
    (launch,) = recording.launches
    return launch


def test_a_recorded_launch_is_not_made_and_names_its_row() -> None:
    from tests.benchmarks.triton_examples import gram

    with recorded_launches("sm_90") as recording:
        out = gram(torch.full((40, 32), 7.0))
        assert compile_target() == "sm_90"
    assert compile_target() is None
    (launch,) = recording.launches
    assert launch.name == "gram_kernel"
    assert launch.grid == (1,)
    assert launch.config == {"WIDTH": 32, **ROW}
    row = recording.row_of(launch)
    assert row is not None
    assert (row.op, row.kernel, row.architecture, row.name) == ("gram", "forward", "sm_90", "width=32")
    assert (out == 0).all(), "computed, or what was in memory"


def test_what_a_launch_would_have_written_is_zeros_whatever_is_in_memory() -> None:
    for _ in range(20):
        torch.full((4096,), -1, dtype=torch.int32)  # its memory is given again
        with recorded_launches("sm_90"):
            made = torch.empty(4096, dtype=torch.int32)
            assert all((part == 0).all() for part in (made, torch.empty_like(made), made.new_empty(4096)))


def test_launches_are_made_again_afterwards() -> None:
    from triton.runtime.jit import JITFunction

    made = JITFunction.run
    with pytest.raises(ZeroDivisionError), recorded_launches("sm_90"):
        raise ZeroDivisionError
    assert JITFunction.run is made


def test_hopper_gets_warp_group_products_and_ampere_its_own() -> None:
    hopper = compile_launch(_gram_launch(64), "sm_90")
    ampere = compile_launch(_gram_launch(64, target="sm_80"), "sm_80")
    assert hopper.code.tensor_core.keys() == {"HGMMA"}
    assert ampere.code.tensor_core.keys() == {"HMMA"}
    assert hopper.dots == ((128, 64, 64, "bf16"), (128, 64, 64, "bf16"))
    assert hopper.faults() == ampere.faults() == []
    assert 0 < hopper.code.registers <= 255
    assert hopper.shared_bytes >= 2 * 64 * 64 * 2
    assert "wgmma" in hopper.ptx


def test_fewer_rows_than_a_warp_group_takes_pass_with_small_products() -> None:
    report = compile_launch(_gram_launch(16), "sm_90")
    assert "HMMA" in report.code.tensor_core
    assert report.faults() == []


def test_float32_asks_for_no_tensor_cores() -> None:
    report = compile_launch(_gram_launch(32, torch.float32), "sm_90")
    assert report.code.tensor_core == {}
    assert report.faults() == []


def test_the_specialisation_follows_the_arguments() -> None:
    aligned = compile_launch(_gram_launch(32), "sm_90").ttir
    odd = compile_launch(_gram_launch(32, offset=1), "sm_90").ttir
    assert "x_ptr: !tt.ptr<bf16> {tt.divisibility = 16" in aligned
    assert "x_ptr: !tt.ptr<bf16> loc" in odd
    assert "%T: i32 loc" in aligned
    assert "%stride: i32 {tt.divisibility = 16" in aligned
    launch = _gram_launch(32)
    huge = replace(launch, args=(*launch.args[:2], 1 << 40, launch.args[3]))
    assert "%T: i64" in compile_launch(huge, "sm_90").ttir


def test_spills_and_too_much_shared_memory_are_faults() -> None:
    launch = _gram_launch(64)
    spilling = replace(launch, kwargs={**launch.kwargs, "BLOCK_M": 128, "BLOCK_N": 256, "num_warps": 4})
    report = compile_launch(spilling, "sm_90")
    assert any("spills" in fault for fault in report.faults())
    report = replace(compile_launch(launch, "sm_90"), shared_bytes=232_449)
    assert any("the limit is 232448" in fault for fault in report.faults())


def test_products_that_miss_the_tensor_cores_are_a_fault() -> None:
    report = compile_launch(_gram_launch(64), "sm_90")
    for found in ({}, {"HMMA": 4}, {"HGMMA": 4, "HMMA": 1}):
        assert any(
            "without tensor cores" in fault
            for fault in replace(report, code=replace(report.code, tensor_core=found)).faults()
        )


def test_atomics_and_narrow_offsets_are_faults() -> None:
    from tests.benchmarks import triton_examples

    x = torch.zeros(64)
    atomic = compile_launch(Launch(triton_examples.atomic_kernel, (1,), (x, x, 50, 17), {"BLOCK": 64}), "sm_90")
    assert any("atomic instructions" in fault for fault in atomic.faults())
    narrow = compile_launch(Launch(triton_examples.narrow_kernel, (1,), (x, x, 50, 17), {"BLOCK": 64}), "sm_80")
    (fault,) = narrow.faults()
    assert fault.startswith("narrow_kernel on sm_80 with {'BLOCK': 64}: 32-bit offset, line ")

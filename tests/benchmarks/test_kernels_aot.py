"""The table of compiled kernels: into the page, into the results, and an exit code for faults."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import kernels_aot
from benchmarks.support.kernel_reports import case_reports
from benchmarks.support.marked_part import markers
from recsys.kernels.backend import is_interpreting
from recsys.kernels.launch import tables_in
from tests.benchmarks.support.gram_cases import ROW, gram_case, write_table

pytest.importorskip("triton", reason="kernels are compiled by triton")
pytestmark = [pytest.mark.aot, pytest.mark.skipif(is_interpreting(), reason="the interpreter compiles nothing")]
BEGIN, END = markers(kernels_aot.MARK)


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    page = tmp_path / "kernels.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    return argparse.Namespace(targets=["sm_90", "sm_80"], page=page, no_page=False, only="", results=tmp_path)


def test_every_row_gets_a_line_in_page_and_results(tmp_path: Path, options: argparse.Namespace) -> None:
    write_table(tmp_path)
    with tables_in(tmp_path):
        assert kernels_aot.report([gram_case(32), gram_case(64)], options) == 0
    lines = options.page.read_text().splitlines()
    assert lines[0] == "before"
    assert lines[-1] == "after"
    (hopper,) = (line for line in lines if "sm_90 | width=64" in line)
    assert hopper.startswith("| gram | gram_kernel | sm_90 | width=64 | M128 N64, 8, 2 | ")
    assert "HGMMA |" in hopper
    assert sum("| gram |" in line for line in lines) == 4
    written = json.loads((tmp_path / "kernels_aot.jsonl").read_text())
    assert written["launches"] == 4
    assert written["faults"] == []
    assert len(written["rows"]) == 4
    first = dict(zip(written["columns"], written["rows"][0], strict=True))
    assert (first["op"], first["row"], first["spills"]) == ("gram", "width=32", "0")
    assert written["triton"]


def test_a_fault_is_told_and_fails(
    tmp_path: Path, options: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, {"width=64": ROW | {"BLOCK_M": 128, "BLOCK_N": 256}})
    options.targets = ["sm_90"]
    with tables_in(tmp_path):
        assert kernels_aot.report([gram_case(64)], options) == kernels_aot.FAULTS
    assert "fault: gram_kernel on sm_90 with {'WIDTH': 64, 'BLOCK_M': 128" in capsys.readouterr().out


def test_a_line_of_the_page_holds_the_worst_of_its_launches(tmp_path: Path) -> None:
    write_table(tmp_path)
    with tables_in(tmp_path):
        (bf16,), (fp16,) = (list(case_reports(gram_case(32, t), "sm_90")) for t in (torch.bfloat16, torch.float16))
    code = replace(fp16.report.code, registers=254, tensor_core={"HGMMA": 1})
    fp16 = replace(fp16, report=replace(fp16.report, code=code, shared_bytes=99 * 1024))
    (row,) = kernels_aot.rows_of([bf16, fp16])
    assert row[5:] == ["254", "0", "99", "1 HGMMA"]


def test_a_name_that_no_case_holds_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert kernels_aot.main(["--only", "no such case"]) == kernels_aot.NOTHING
    assert "no case's name holds 'no such case'" in capsys.readouterr().err

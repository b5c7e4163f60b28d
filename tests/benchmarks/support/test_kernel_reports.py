"""Cases, what they launch, and which rows of a table they reach."""

from pathlib import Path

import pytest
import torch

from benchmarks.support.kernel_cases import all_cases
from benchmarks.support.kernel_reports import case_reports, record, rows_not_reached
from recsys.kernels.backend import is_interpreting
from recsys.kernels.launch import tables_in
from tests.benchmarks.support.gram_cases import ROW, gram_case, write_table

pytest.importorskip("triton", reason="kernels are compiled by triton")
pytestmark = [pytest.mark.aot, pytest.mark.skipif(is_interpreting(), reason="the interpreter compiles nothing")]


def test_a_row_that_no_case_looks_up_is_named(tmp_path: Path) -> None:
    write_table(tmp_path)
    with tables_in(tmp_path):
        assert rows_not_reached("gram", "sm_90", [gram_case(32)]) == ["forward width=64"]
        assert rows_not_reached("gram", "sm_90", [gram_case(32), gram_case(64)]) == []


def test_a_report_names_its_case_and_its_row(tmp_path: Path) -> None:
    write_table(tmp_path)
    with tables_in(tmp_path):
        (found,) = case_reports(gram_case(32), "sm_90")
        assert len(record(gram_case(32), "sm_80").launches) == 1
    assert found.row is not None
    assert (found.row.name, found.row.row) == ("width=32", ROW)
    assert found.report.code.tensor_core["HGMMA"] > 0


def test_equal_launches_are_compiled_once(tmp_path: Path) -> None:
    write_table(tmp_path)
    with tables_in(tmp_path):
        (first,), (second,) = (list(case_reports(gram_case(32, torch.float16), "sm_90")) for _ in range(2))
    assert second.report is first.report


def test_names_of_cases_are_unique() -> None:
    names = [(case.op, case.name) for case in all_cases()]
    assert len(set(names)) == len(names)

"""Every launch of every op, compiled for sm_90 and sm_80: no spills, within shared memory, on the tensor cores, no
atomics, offsets of 64 bits."""

import pytest

from benchmarks.support.compiled import TARGETS
from benchmarks.support.kernel_cases import KernelCase, all_cases, cases_of
from benchmarks.support.kernel_reports import case_reports, ops_with_a_table, rows_not_reached
from recsys.kernels.launch import table

OPS = ops_with_a_table()


def _cases(is_quick: bool) -> list[object]:
    return [
        pytest.param(case, target, id=f"{case.op}: {case.name}: {target}")
        for target in TARGETS
        for case in all_cases()
        if case.op in OPS and case.is_quick is is_quick
    ]


@pytest.mark.aot
@pytest.mark.parametrize(("case", "target"), _cases(is_quick=True))
def test_a_launch_has_no_fault(case: KernelCase, target: str) -> None:
    _check(case, target)


@pytest.mark.aot_full
@pytest.mark.parametrize(("case", "target"), _cases(is_quick=False))
def test_each_other_launch_has_no_fault_either(case: KernelCase, target: str) -> None:
    _check(case, target)


@pytest.mark.aot
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", OPS)
def test_every_row_of_a_launch_table_is_reached(op: str, target: str) -> None:
    assert table(op).get(target), f"launches/{op}.json has no part {target}"
    assert rows_not_reached(op, target, cases_of(op)) == []


@pytest.mark.aot
def test_every_case_belongs_to_an_op_and_has_a_name_of_its_own() -> None:
    names = [(case.op, case.name) for case in all_cases()]
    assert len(set(names)) == len(names)


def _check(case: KernelCase, target: str) -> None:
    found = list(case_reports(case, target))
    assert found, "nothing was launched"
    assert [fault for item in found for fault in item.report.faults()] == []

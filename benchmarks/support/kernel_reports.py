"""What the cases of the ops launch and look up, and the reports of the compiled kernels."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.support.compiled import Recording, Report, compile_launch, recorded_launches
from benchmarks.support.kernel_cases import KernelCase
from recsys.kernels.launch import LAUNCHES, Lookup, table


@dataclass(frozen=True)
class CaseReport:
    """One compiled launch of a case, and the row of the table it was made with."""

    case: KernelCase
    report: Report
    row: Lookup | None


def record(case: KernelCase, target: str) -> Recording:
    """What the case launches on `target`, forward and backward."""
    with recorded_launches(target) as recording:
        case.run(torch.device("cpu"), False)
    return recording


def case_reports(case: KernelCase, target: str) -> Iterator[CaseReport]:
    """The case's launches, compiled."""
    recording = record(case, target)
    for launch in recording.launches:
        yield CaseReport(case, compile_launch(launch, target), recording.row_of(launch))


def ops_with_a_table() -> list[str]:
    """The ops that have a launch table."""
    return sorted(file.stem for file in LAUNCHES.glob("*.json"))


def rows_not_reached(op: str, target: str, cases: Iterable[KernelCase]) -> list[str]:
    """The rows of the op's table for `target` that no case looks up, as `kernel row`."""
    lookups = [lookup for case in cases for lookup in record(case, target).lookups if lookup.op == op]
    asked = {(lookup.kernel, lookup.name) for lookup in lookups}
    left = []
    for kernel, rows in table(op).get(target, {}).items():
        names = {name for at, name in asked if at == kernel}
        left += [f"{kernel} {name}" for name in rows if name not in names and not (name == "*" and names - rows.keys())]
    return left

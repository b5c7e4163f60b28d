"""What every row of the launch tables becomes on each architecture, compiled without a GPU.

    python -m benchmarks.kernels_aot [--ops attention] [--targets sm_90 sm_80] [--no-page]

Prints a table, puts it between the markers `kernels-aot` of docs/kernels-compiled.md, and appends it to
benchmarks/results/kernels_aot.jsonl. A line of the table holds the worst of all launches with that row of the launch
table: most registers, spills and shared memory, fewest tensor-core instructions. The exit code is 1 if a launch
has a fault (`benchmarks/support/compiled.py` tells which those are).
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.support.compiled import TARGETS, Report
from benchmarks.support.kernel_cases import KernelCase, all_cases
from benchmarks.support.kernel_reports import CaseReport, case_reports, ops_with_a_table
from benchmarks.support.marked_part import markdown, rewrite
from benchmarks.support.record import RESULTS, append

MARK = "kernels-aot"
PAGE = Path(__file__).parents[1] / "docs" / "kernels-compiled.md"
COLUMNS = ["op", "kernel", "GPU", "row", "blocks, warps, stages", "registers", "spills", "shared, KB", "tensor-core"]
FAULTS, NOTHING = 1, 2


def rows_of(found: Iterable[CaseReport]) -> list[list[str]]:
    """Cells of the page's table: a line for each op, kernel, architecture and row."""
    groups: dict[tuple[str, ...], list[Report]] = defaultdict(list)
    for item in found:
        report = item.report
        row = "-" if item.row is None else item.row.name.replace(",", " ")
        groups[item.case.op, report.kernel, report.target, row, _settings(report.config)].append(report)
    return [[*key, *_worst(reports)] for key, reports in sorted(groups.items())]


def _settings(config: Mapping[str, int]) -> str:
    blocks = " ".join(f"{name[6:]}{value}" for name, value in config.items() if name.startswith("BLOCK_"))
    return f"{blocks}, {config.get('num_warps', 4)}, {config.get('num_stages', 3)}"


def _worst(reports: Sequence[Report]) -> list[str]:
    kinds = sorted({kind for report in reports for kind in report.code.tensor_core})
    products = [
        f"{min(report.code.tensor_core.get(kind, 0) for report in reports if report.dots)} {kind}" for kind in kinds
    ]
    return [
        str(max(report.code.registers for report in reports)),
        str(max(report.code.spills for report in reports)),
        f"{max(report.shared_bytes for report in reports) / 1024:.0f}",
        ", ".join(products) or "-",
    ]


def compile_all(cases: Sequence[KernelCase], targets: Sequence[str]) -> list[CaseReport]:
    """Every launch of the cases for every target, with progress on the error stream."""
    found: list[CaseReport] = []
    for target in targets:
        for number, case in enumerate(cases, start=1):
            print(f"\r{target} {number}/{len(cases)} {case.op}: {case.name:40}", end="", file=sys.stderr, flush=True)
            found += case_reports(case, target)
    print(file=sys.stderr)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, write down; the exit code: 0, 1 with faults, 2 with nothing to compile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", default=ops_with_a_table(), choices=ops_with_a_table())
    parser.add_argument("--targets", nargs="+", default=list(reversed(TARGETS)), choices=TARGETS)
    parser.add_argument("--only", default="", help="cases whose name holds this; the page is left alone")
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the two markers")
    parser.add_argument("--no-page", action="store_true", help="leave the page alone")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of kernels_aot.jsonl")
    options = parser.parse_args(arguments)
    cases = [case for case in all_cases() if case.op in options.ops and options.only in case.name]
    if not cases:
        print(f"no case's name holds {options.only!r}", file=sys.stderr)
        return NOTHING
    return report(cases, options)


def report(cases: Sequence[KernelCase], options: argparse.Namespace) -> int:
    """Compile the cases and write down what became of them; the exit code."""
    found = compile_all(cases, options.targets)
    rows = rows_of(found)
    text = markdown(COLUMNS, rows)
    print(text)
    faults = list(dict.fromkeys(fault for item in found for fault in item.report.faults()))
    print("\n".join(f"fault: {fault}" for fault in faults) or f"no fault in {len(found)} launches")
    import triton

    figures = {"triton": triton.__version__, "launches": len(found), "faults": faults, "columns": COLUMNS, "rows": rows}
    append("kernels_aot", figures, options.results)
    if not options.no_page and not options.only:
        rewrite(options.page, MARK, text)
    return FAULTS if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Find the fastest launch of every kernel on the GPU at hand, and write it into the launch tables.

    python -m benchmarks.tune_kernels [--ops attention] [--kernels forward] [--only width=64] [--budget-s 1200]
    python -m benchmarks.tune_kernels --dry-run --target sm_90      # no GPU: which launches compile without a fault

For every row that the cases of `benchmarks/support/kernel_cases.py` look up: the row of the table (or a guess where it
has none), and its neighbours, at most two settings a step away. Those that compile without a fault (spills, too much
shared memory, ...) are run; one whose results or gradients differ by more than rounding from those of the row at hand
(of the torch path, where that row does not compile) is named and dropped. The others are timed, each launch alone on
its real tensors, with a cold L2 cache; the fastest goes into recsys/kernels/launches/<op>.json at once. While a
neighbour wins, its own neighbours are tried, --rounds times.

Resumable: what was timed stands in OUT/<op>-<GPU>.json, and a row that is finished there is skipped. Compilation runs
in --workers processes of their own.
"""

import argparse
import json
import math
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.support.compiled import TARGETS, Launch, compile_launch, observed_launches
from benchmarks.support.device_time import times_in_turn
from benchmarks.support.kernel_cases import KernelCase, cases_of
from benchmarks.support.kernel_reports import ops_with_a_table, record
from benchmarks.support.launch_candidates import Row, candidates, first_guess
from benchmarks.support.launch_results import difference
from benchmarks.support.op_contests import path
from recsys.kernels import launch as launches

EVERY = "*"
REFUSED = 2
OUT = Path("runs/tune-kernels")


@dataclass(frozen=True)
class Key:
    """One row of a launch table, and a case that looks it up."""

    op: str
    kernel: str
    row: str
    case: KernelCase = field(compare=False)

    def __str__(self) -> str:
        return f"{self.op} {self.kernel} {self.row}"


@dataclass(frozen=True)
class Tried:
    """A launch that was compiled: the kernels that follow the row, and what is wrong with them."""

    row: Row
    kernels: tuple[str, ...]
    registers: int
    shared_bytes: int
    faults: tuple[str, ...]


def asked_rows(op: str, target: str, cases: Sequence[KernelCase]) -> list[Key]:
    """Every row that the cases look up, once, whether the table has it or not."""
    found: dict[Key, None] = {}
    for case in cases:
        for lookup in record(case, target).lookups:
            if lookup.op == op:
                found.setdefault(Key(op, lookup.kernel, lookup.name, case))
    return list(found)


def guessed_table(op: str, target: str) -> dict[str, Any]:
    """The op's table, with a guess for each kernel that has no row at all for `target` or an older architecture."""
    parts = launches.table(op)
    older = launches.nearest(target, tuple(parts))
    own = {kernel: dict(rows) for kernel, rows in parts.get(older, {}).items()}
    for part in parts.values():
        for kernel, rows in part.items():
            own.setdefault(kernel, {EVERY: first_guess(next(iter(rows.values())))})
    return {**parts, target: own}


def with_row(table: dict[str, Any], target: str, key: Key, row: Row) -> dict[str, Any]:
    """The table with one row of `target` replaced."""
    part = table[target]
    return {**table, target: {**part, key.kernel: {**part.get(key.kernel, {}), key.row: row}}}


@contextmanager
def table_of(op: str, content: dict[str, Any]) -> Iterator[None]:
    """Within: the op's launches follow this table, and those of other ops the tables they have."""
    with tempfile.TemporaryDirectory() as folder:
        for file in launches.LAUNCHES.glob("*.json"):
            shutil.copy(file, folder)
        (Path(folder) / f"{op}.json").write_text(json.dumps(content), encoding="utf-8")
        with launches.tables_in(Path(folder)):
            yield


def try_row(key: Key, target: str, table: dict[str, Any], row: Row) -> Tried:
    """Compile what the case launches with this row; a compiler's error is a fault."""
    with table_of(key.op, with_row(table, target, key, row)):
        made = record(key.case, target).launches
    with table_of(key.op, with_row(table, target, key, {**row, "num_stages": row["num_stages"] + 1})):
        other = record(key.case, target).launches
    follow = [a for a, b in zip(made, other, strict=True) if a.config != b.config]
    kernels = tuple(dict.fromkeys(launch.name for launch in follow))
    try:
        reports = [compile_launch(launch, target, use_cache=True) for launch in follow]
    except Exception as error:  # whatever a compiler raises for a launch, another may do
        said = [line.strip() for line in str(error).splitlines() if re.search(r"\w", line)]
        return Tried(row, kernels, 0, 0, (f"{type(error).__name__}: {said[-1] if said else ''}",))
    return Tried(
        row,
        kernels,
        max((report.code.registers for report in reports), default=0),
        max((report.shared_bytes for report in reports), default=0),
        tuple(fault for report in reports for fault in report.faults()) or (() if reports else ("nothing follows it",)),
    )


class Tuner:
    """The search for one op on one architecture.

    Args:
        options: of the command line.
        target: the architecture.
        device: where launches are timed; None to compile alone.
        pool: of the compiling processes; None to compile in this one.
    """

    def __init__(
        self, options: argparse.Namespace, target: str, device: torch.device | None, pool: ProcessPoolExecutor | None
    ) -> None:
        self.options, self.target, self.device, self.pool = options, target, device, pool
        self.until = math.inf if options.budget_s is None else time.monotonic() + options.budget_s

    def run(self, op: str, cases: Sequence[KernelCase]) -> bool:
        """Tune every row that the cases look up; returns whether the budget sufficed."""
        table = guessed_table(op, self.target)
        with table_of(op, table):
            keys = asked_rows(op, self.target, cases)
        keys = [
            key for key in keys if self.options.only in key.row and key.kernel in (self.options.kernels or [key.kernel])
        ]
        done = self._done(op)
        for number, key in enumerate(keys, start=1):
            at = f"[{number}/{len(keys)}] {key}"
            if self.device is not None and done.get(f"{key.kernel} {key.row}", {}).get("is_finished"):
                print(f"{at}: finished before", flush=True)
                continue
            if time.monotonic() > self.until:
                print(f"the budget is spent, {len(keys) - number + 1} rows are left; the same command goes on")
                return False
            print(at, flush=True)
            self._row(key, table, done)
        return True

    def _row(self, key: Key, table: dict[str, Any], done: dict[str, Any]) -> None:
        rows = table[self.target][key.kernel]
        best: Row = dict(rows.get(key.row) or rows[EVERY])
        times: dict[str, float] = {}
        differing: dict[str, str] = {}
        wanted: list[Tensor] | None = None
        for _ in range(self.options.rounds):
            fresh = [row for row in candidates(best, self.options.changes) if json.dumps(row) not in times | differing]
            tried = [item for item in self._compiled(key, table, fresh) if self._is_told(item)]
            if self.device is None:
                return
            for item in tried:
                if wanted is None:  # the first of the fresh ones is the row at hand
                    wanted = self._results(key, table, fresh[0] if item.row == fresh[0] else None)
                if fault := difference(self._results(key, table, item.row), wanted):
                    differing[json.dumps(item.row)] = fault
                    print(f"    differs, dropped  {item.row}  {fault}", flush=True)
                    continue
                times[json.dumps(item.row)] = self._time(key, table, item)
                print(f"    {times[json.dumps(item.row)]:9.4f} ms  {item.row}", flush=True)
            fastest = json.loads(min(times, key=times.__getitem__)) if times else best
            if fastest == best:
                break
            best = fastest
        if not times:
            print("    no launch compiles without a fault and computes the same; the table keeps what it has")
            return
        table[self.target][key.kernel][key.row] = best
        figures = {"best": best, "ms": times, "differing": differing, "gpu": self._gpu()}
        done[f"{key.kernel} {key.row}"] = {"is_finished": True, **figures}
        self._write(key, best, done)

    def _compiled(self, key: Key, table: dict[str, Any], rows: Sequence[Row]) -> list[Tried]:
        if self.pool is None:
            return [try_row(key, self.target, table, row) for row in rows]
        waiting = [self.pool.submit(try_row, key, self.target, table, row) for row in rows]
        return [future.result() for future in waiting]

    def _is_told(self, item: Tried) -> bool:
        """Whether the launch is legal; `--dry-run` prints each."""
        if self.device is None:
            fault = "; ".join(item.faults)
            figures = f"{item.registers:3} registers, {item.shared_bytes / 1024:3.0f} KB"
            print(
                f"    {'no ' if fault else 'yes'} {figures}  {item.row}{f'  {fault[:150]}' if fault else ''}",
                flush=True,
            )
        return not item.faults

    def _results(self, key: Key, table: dict[str, Any], row: Row | None) -> list[Tensor]:
        """Results and gradients of the case with this row, or by the torch path, on the same random numbers."""
        assert self.device is not None
        torch.manual_seed(0)
        if row is None:
            with path("torch"):
                return key.case.run(self.device, True)
        with table_of(key.op, with_row(table, self.target, key, row)):
            return key.case.run(self.device, True)

    def _time(self, key: Key, table: dict[str, Any], item: Tried) -> float:
        """Milliseconds of the launches that follow the row, one after another."""
        assert self.device is not None
        with table_of(key.op, with_row(table, self.target, key, item.row)):
            with observed_launches() as made:
                key.case.run(self.device, True)
            runs = {str(n): _again(launch) for n, launch in enumerate(made) if launch.name in item.kernels}
            measured = times_in_turn(runs, self.device, self.options.repeats)
        return sum(times.median for times in measured.values())

    def _gpu(self) -> str:
        assert self.device is not None
        return torch.cuda.get_device_name(self.device)

    def _done(self, op: str) -> dict[str, Any]:
        file = self._log(op)
        return json.loads(file.read_text(encoding="utf-8")) if self.device is not None and file.is_file() else {}

    def _log(self, op: str) -> Path:
        return Path(self.options.out) / f"{op}-{self.target}.json"

    def _write(self, key: Key, best: Row, done: dict[str, Any]) -> None:
        content = with_row({self.target: {}, **launches.table(key.op)}, self.target, key, best)
        _replace(launches.LAUNCHES / f"{key.op}.json", launches.as_text(content))
        self._log(key.op).parent.mkdir(parents=True, exist_ok=True)
        _replace(self._log(key.op), json.dumps(done, indent=1) + "\n")


def _again(launch: Launch) -> Any:
    return lambda: launch.kernel[launch.grid](*launch.args, **launch.kwargs)


def _replace(file: Path, text: str) -> None:
    part = file.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", default=ops_with_a_table(), choices=ops_with_a_table() or None)
    parser.add_argument("--kernels", nargs="+", help="these parts of the op, such as forward")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--target", choices=TARGETS, help="of a dry run; otherwise the GPU's own")
    parser.add_argument("--dry-run", action="store_true", help="compile alone, and list what is legal; writes nothing")
    parser.add_argument("--changes", type=int, default=2, help="settings that differ from the row at most")
    parser.add_argument("--rounds", type=int, default=3, help="of neighbours of the fastest so far")
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of each launch")
    parser.add_argument("--budget-s", type=float, help="begin no row after so many seconds")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that compile; 0: this one")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of what was timed")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Tune; the exit code: 0, 1 with the budget spent, 2 where it cannot run."""
    options = _parser().parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("error: there is no GPU to time on; --dry-run --target sm_90 lists what compiles", file=sys.stderr)
        return REFUSED
    if options.dry_run and options.target is None:
        print(f"error: --dry-run needs --target, one of {', '.join(TARGETS)}", file=sys.stderr)
        return REFUSED
    device = None if options.dry_run else torch.device("cuda")
    target = options.target if device is None else launches.architecture(device)
    pool = ProcessPoolExecutor(options.workers, get_context("spawn")) if options.workers else None
    try:
        tuner = Tuner(options, target, device, pool)
        return 0 if all(tuner.run(op, cases_of(op)) for op in options.ops) else 1
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


if __name__ == "__main__":
    sys.exit(main())

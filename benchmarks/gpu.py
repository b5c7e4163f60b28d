"""What is owed on a machine with a GPU, in one command: kernels, agreement with the CPU, speed, trainings to the end.

    python -m benchmarks.gpu --kernels-only --out OUT [--budget-s 500]
    python -m benchmarks.gpu --runs runs --out OUT [--device cuda] [--seconds 20] [--epochs 40]

First `python -m benchmarks.kernels`, then the tests of the kernels that need a GPU, a process each file; then the
models. `--kernels-only` needs torch, triton, numpy and pytest alone; without pytest the tests are not run, and it says
so. The models need safetensors and PyYAML, too, and the prepared datasets runs/ml-1m/data and runs/amazon-beauty/data
(`python -m benchmarks.path` makes them; they are copied as they are).

Writes OUT/kernels.json after every part, OUT/gpu_tests.json after every file, and OUT/gpu.json. With `--budget-s` no
part of the kernels and no file begins after so many seconds; the same command goes on where it ended, for what passed
is not run again: give other code another OUT.

Exit code: 0, 1 where a part or a test failed or was not reached, 2 where it cannot run.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.support.files_of_tests import run_test_files
from benchmarks.support.record import machine

CONFIGS = ("ml-1m/sasrec", "ml-1m/bert4rec", "amazon-beauty/sasrec", "amazon-beauty/bert4rec")
# The dataset's conftest needs packages that a bare machine lacks, and its versions may warn where ours do not.
TEST_OPTIONS = ("-m", "gpu", "-q", "-W", "default", "--confcutdir", "tests/kernels")
TESTS = Path("tests/kernels/gpu")
REFUSED = 2


def kernel_speed(out: Path, device: str, budget_s: float = math.inf, more: Sequence[str] = ()) -> dict[str, Any]:
    """Every part of `benchmarks.kernels`, in OUT/kernels.json: how many, which failed, and which were not reached."""
    suite = ("h200",) if device == "cuda" else ("cpu", "--tiny")
    command = [sys.executable, "-m", "benchmarks.kernels", "--suite", *suite, "--out", str(out), *more]
    if budget_s < math.inf:
        command += ["--budget-s", str(budget_s)]
    exit_code = subprocess.run(command, check=False).returncode
    file = out / "kernels.json"
    report = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"parts": {}}
    return {
        "exit_code": exit_code,
        "parts": len(report["parts"]),
        "failed": report.get("failed", []),
        "not_run": report.get("not_run", []),
    }


def kernel_faults(speed: dict[str, Any], tests: dict[str, Any]) -> Iterator[str]:
    """What failed, was skipped or was not reached, a line each."""
    yield from (f"kernel speed, {name}: failed" for name in speed["failed"])
    yield from (f"kernel speed, {name}: not run: the budget was spent" for name in speed["not_run"])
    if not speed["parts"] or (speed["exit_code"] and not speed["failed"] and not speed["not_run"]):
        yield f"kernel speed: exit code {speed['exit_code']} after {speed['parts']} parts"
    yield from (f"{file}: {row['outcome']}" for file, row in tests.items() if row["outcome"] != "passed")
    if not tests:
        yield f"{TESTS}: there are no tests here; run it in the root of the repository"


def _write(out: Path, report: dict[str, Any]) -> None:
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _kernels(options: argparse.Namespace, report: dict[str, Any]) -> list[str]:
    """Measure and test the kernels; returns what is at fault."""
    budget_s = math.inf if options.budget_s is None else options.budget_s
    until = time.monotonic() + budget_s
    speed = report["kernel speed"] = kernel_speed(options.out, options.device, budget_s)
    _write(options.out, report)
    print(f"kernel speed: {json.dumps(speed)}", flush=True)
    files = sorted(TESTS.glob("test_*.py"))
    found = run_test_files(files, TEST_OPTIONS, options.out / "gpu_tests.json", until)
    report["kernel tests"] = {file: row["outcome"] for file, row in found.items()}
    _write(options.out, report)
    return list(kernel_faults(speed, found))


def _models(options: argparse.Namespace, report: dict[str, Any]) -> None:
    from benchmarks.support.gpu_models import model_parts

    for name in (name for name in CONFIGS if options.only in name):
        row = report["configs"].setdefault(name, {})
        parts = model_parts(
            name,
            options.runs,
            options.out,
            device=options.device,
            seconds=options.seconds,
            epochs=options.epochs,
        )
        for part, measure in parts.items():
            row[part] = measure()
            _write(options.out, report)
            print(f"{name} {part}: {json.dumps(row[part])}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every part and write the JSON after each; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the prepared datasets")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder for the JSON files and the runs")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu to try the script")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timed steps for each config")
    parser.add_argument("--epochs", type=int, default=None, help="of the trainings; those of each config by default")
    parser.add_argument("--only", default="", help="configs whose name holds this")
    parser.add_argument("--kernels-only", action="store_true", help="leave the models out")
    parser.add_argument("--no-kernels", action="store_true", help="leave the kernels out")
    parser.add_argument(
        "--budget-s", type=float, help="of the kernels: begin no part and no file after so many seconds"
    )
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            f"error: --device cuda: torch {torch.__version__} finds no GPU, and nothing was run; "
            "--device cpu tries the script without one",
            file=sys.stderr,
        )
        return REFUSED
    if options.kernels_only and options.no_kernels:
        parser.error("--kernels-only and --no-kernels leave nothing to run; give one of them")
    options.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": machine(), "configs": {}}
    faults = [] if options.no_kernels else _kernels(options, report)
    if not options.kernels_only:
        _models(options, report)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

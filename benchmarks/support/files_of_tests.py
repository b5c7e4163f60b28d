"""Test files, one process each, with the outcome of every file written down when it ends."""

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

KEPT_CHARACTERS = 4000  # of what a file prints
NO_PYTEST = "pytest is not installed; pip install pytest"


def run_test_files(
    files: Sequence[Path],
    options: Sequence[str],
    report: Path,
    until: float,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Outcome of each file by its path: those that stand in `report` as passed, and those that are run now.

    `outcome` is `passed`, `failed`, `skipped` (no test of it ran) or `not run: …`; beside it stand how many tests
    `passed`, `failed` and `skipped`, `seconds`, and the end of what it printed.

    Args:
        options: of pytest, before the file.
        report: JSON, written after every file.
        until: seconds of `clock` after which no file begins.
    """
    kept: dict[str, Any] = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    found = {str(file): kept.get(str(file), {"outcome": "not run: not reached"}) for file in files}
    has_pytest = importlib.util.find_spec("pytest") is not None
    for file, row in found.items():
        if row["outcome"] == "passed":
            continue
        if not has_pytest:
            found[file] = {"outcome": f"not run: {NO_PYTEST}"}
        elif clock() > until:
            found[file] = {"outcome": "not run: the budget was spent"}
        else:
            found[file] = _run(file, options)
        _write(report, found)
        print(f"{file}: {found[file]['outcome']}", flush=True)
    return found


def _run(file: str, options: Sequence[str]) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={junit}", file]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        counts = _counts(junit)
    outcome = "failed" if run.returncode else "passed" if counts["passed"] else "skipped"
    said = (run.stdout + run.stderr)[-KEPT_CHARACTERS:]
    seconds = round(time.monotonic() - began, 1)
    return {"outcome": outcome, **counts, "exit_code": run.returncode, "seconds": seconds, "output": said}


def _counts(junit: Path) -> dict[str, int]:
    """Tests that passed, failed and were skipped; none where pytest came to no end."""
    total = failed = skipped = 0
    for suite in ElementTree.parse(junit).iter("testsuite") if junit.is_file() else ():
        total += int(suite.get("tests", 0))
        failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return {"passed": max(0, total - failed - skipped), "failed": failed, "skipped": skipped}


def _write(report: Path, found: dict[str, Any]) -> None:
    part = report.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part.replace(report)

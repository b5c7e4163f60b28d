"""Test files run one by one: outcomes, the budget, and what a second call leaves out."""

import importlib.util
import json
import math
from pathlib import Path

import pytest

from benchmarks.support.files_of_tests import run_test_files

SOURCES = {
    "test_a.py": "def test_a():\n    assert True\n",
    "test_b.py": "def test_a():\n    assert True\n\ndef test_b():\n    assert False\n",
    "test_c.py": "import pytest\n\n@pytest.mark.skip\ndef test_c():\n    assert True\n",
    "test_d.py": "def broken(:\n",
}
OPTIONS = ("-q", "-p", "no:cacheprovider", "-c", "/dev/null")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, source in SOURCES.items():
        (tmp_path / name).write_text(source)
    return [tmp_path / name for name in SOURCES]


@pytest.mark.slow
def test_a_file_passes_only_where_a_test_of_it_ran_and_none_failed(files: list[Path], tmp_path: Path) -> None:
    found = run_test_files(files, OPTIONS, tmp_path / "tests.json", math.inf)
    assert [row["outcome"] for row in found.values()] == ["passed", "failed", "skipped", "failed"]
    failed = found[str(files[1])]
    assert (failed["passed"], failed["failed"], failed["exit_code"]) == (1, 1, 1)
    assert "1 failed, 1 passed" in failed["output"]
    assert json.loads((tmp_path / "tests.json").read_text()) == found


@pytest.mark.slow
def test_files_beyond_the_budget_are_not_run_and_the_next_call_goes_on(files: list[Path], tmp_path: Path) -> None:
    report, now = tmp_path / "tests.json", iter([0.0, 2.0])
    found = run_test_files(files[:2], OPTIONS, report, 1.0, lambda: next(now))
    assert [row["outcome"] for row in found.values()] == ["passed", "not run: the budget was spent"]
    files[0].write_text("def test_a():\n    assert False\n")
    files[1].write_text("def test_b():\n    assert True\n")
    found = run_test_files(files[:2], OPTIONS, report, math.inf)
    assert [row["outcome"] for row in found.values()] == ["passed", "passed"]


def test_without_pytest_no_file_runs_and_each_says_so(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005  # the signature of find_spec
    found = run_test_files(files, OPTIONS, tmp_path / "tests.json", math.inf)
    assert {row["outcome"] for row in found.values()} == {"not run: pytest is not installed; pip install pytest"}

"""The command for machines with a GPU, without one: it says what did not run, and its exit code says so, too."""

from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import kernel_faults, kernel_speed

SOUND = {"exit_code": 0, "parts": 3, "failed": [], "not_run": []}
PASSED = {"test_a.py": {"outcome": "passed"}}


@pytest.mark.slow
def test_the_suite_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = kernel_speed(tmp_path, "cpu", more=["--only", "^sampled_loss.*shared"])
    assert found == {"exit_code": 0, "parts": 1, "failed": [], "not_run": []}
    found = kernel_speed(tmp_path, "cpu", -1.0, ["--only", "^sampled_loss"])
    assert found["exit_code"] == 1
    assert len(found["not_run"]) == 1


def test_nothing_is_at_fault_where_all_parts_and_files_passed() -> None:
    assert list(kernel_faults(SOUND, PASSED)) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"exit_code": 1, "failed": ["search"]}, "kernel speed, search: failed"),
        ({"exit_code": 1, "not_run": ["search"]}, "kernel speed, search: not run: the budget was spent"),
        ({"parts": 0}, "kernel speed: exit code 0 after 0 parts"),
        ({"exit_code": -9}, "kernel speed: exit code -9 after 3 parts"),
    ],
)
def test_a_part_that_failed_or_did_not_run_is_at_fault(change: dict[str, object], line: str) -> None:
    assert list(kernel_faults(SOUND | change, PASSED)) == [line]


@pytest.mark.parametrize("outcome", ["failed", "skipped", "not run: the budget was spent"])
def test_a_file_that_did_not_pass_is_at_fault(outcome: str) -> None:
    assert list(kernel_faults(SOUND, PASSED | {"test_b.py": {"outcome": outcome}})) == [f"test_b.py: {outcome}"]
    assert "there are no tests" in next(kernel_faults(SOUND, {}))


def test_without_a_gpu_it_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main(["--kernels-only", "--out", str(tmp_path / "out")]) == gpu.REFUSED
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --device cuda: torch")
    assert "finds no GPU, and nothing was run; --device cpu tries the script" in line
    assert not (tmp_path / "out").exists()


def test_speed_is_measured_before_the_tests_and_a_fault_is_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_one.py").write_text("def test_one():\n    assert True\n")
    order: list[str] = []

    def speed(out: Path, device: str, budget_s: float) -> dict[str, object]:  # noqa: ARG001  # the signature of kernel_speed
        order.append(f"speed on {device} within {budget_s:g} s")
        return SOUND

    monkeypatch.setattr(gpu, "kernel_speed", speed)
    monkeypatch.setattr(gpu, "TESTS", tests)
    monkeypatch.setattr(gpu, "TEST_OPTIONS", ("-q", "-c", "/dev/null", "--rootdir", str(tmp_path)))
    command = ["--kernels-only", "--device", "cpu", "--out", str(tmp_path / "out"), "--budget-s"]
    assert gpu.main([*command, "-1"]) == 1
    assert "test_one.py: not run: the budget was spent" in capsys.readouterr().err
    assert gpu.main([*command, "100"]) == 0
    assert gpu.main([*command, "-1"]) == 0
    assert order == ["speed on cpu within -1 s", "speed on cpu within 100 s", "speed on cpu within -1 s"]
    assert (tmp_path / "out" / "gpu_tests.json").is_file()

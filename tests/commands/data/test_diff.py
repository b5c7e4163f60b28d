"""recsys data diff through the command line: a gate."""

import json
from pathlib import Path

import pytest

from recsys.cli import main
from recsys.features.dataset import PreparedDataset


def write(path: Path, users: range, day: int = 0) -> str:
    rows = [f"{u},{(u + n) % 50},{1_500_000_000 + 86_400 * day + 60 * n}" for u in users for n in range(20)]
    path.write_text("user,item,ts\n" + "\n".join(rows) + "\n")
    return str(path)


def test_a_gate_passes_warns_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.csv", range(100))
    next_, fewer = write(tmp_path / "next.csv", range(100), day=1), write(tmp_path / "fewer.csv", range(40))
    assert main(["data", "diff", old, old]) == 0
    assert "warn: same" in capsys.readouterr().out
    assert main(["data", "diff", old, next_, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "ok"
    assert main(["data", "diff", old, fewer, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["fail"]) == ("fail", ["volume.events", "volume.users"])
    assert main(["data", "diff", old, fewer]) == 3
    assert "fail: volume.events, volume.users" in capsys.readouterr().out
    words = ["--set", "volume.max_ratio=2.5", "--json"]
    assert main(["data", "diff", old, fewer, *words]) == 0
    assert json.loads(capsys.readouterr().out)["warn"] == ["volume.events", "volume.users"]


def test_the_callers_faults_stay_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.csv", range(3))
    assert main(["data", "diff", old, str(tmp_path / "absent.csv")]) == 2
    assert "absent.csv" in capsys.readouterr().err
    assert main(["data", "diff", old, old, "--set", "volume.most_ratio=2"]) == 2
    assert "max_ratio" in capsys.readouterr().err


def test_a_prepared_dataset_is_no_log(
    circle: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "diff", str(circle.path), str(circle.path)]) == 2
    assert f"{circle.path}: is a prepared dataset; diff compares logs" in capsys.readouterr().err
    assert main(["prepare", "--source", str(circle.path), "--out", str(tmp_path / "data")]) == 2
    assert f"{circle.path}: is a prepared dataset; wanted a log" in capsys.readouterr().err


def test_a_skipped_check_is_shown_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = write(tmp_path / "old.csv", range(100))
    rows = [f"{u},{1000 + (u + n) % 50},{1_500_000_000 + 60 * n}" for u in range(100) for n in range(20)]
    (tmp_path / "new.csv").write_text("user,item,ts\n" + "\n".join(rows) + "\n")
    words = ["--set", "new_items.max_share=1", "--set", "new_items.warn_share=1", "--json"]
    assert main(["data", "diff", old, str(tmp_path / "new.csv"), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "drift.popularity" in found["skipped"]
    assert found["verdict"] == "ok"

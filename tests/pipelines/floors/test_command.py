import json
from pathlib import Path

import pytest

from recsys.cli import main
from recsys.features.dataset import PreparedDataset


def test_the_command_prints_floors_and_writes_both_files(
    walks: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["floors", str(walks.path), "--trials", "3", "--only", "popularity", "--only", "transition-knn"]
    assert main([*words, "--out", str(tmp_path / "copy.json")]) == 0
    out = capsys.readouterr().out
    assert "transition-knn: window=" in out
    assert "best on the validation part: transition-knn" in out
    assert (tmp_path / "copy.json").read_bytes() == (walks.path / "floors.json").read_bytes()
    assert main([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["best_floor"] == "transition-knn"
    assert values["random_trials"] == 3
    assert main([*words[:2], "--trials", "2", "--only", "transition-knn"]) == 0
    out = capsys.readouterr().out
    assert "floors.json holds as many trials of these floors already: nothing was tuned" in out
    assert "written" not in out
    assert values["test"]["popularity"]["ndcg@10"].keys() == {"mean", "low", "high"}


def test_a_missing_dataset_and_a_bad_place_are_one_line_each(
    walks: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["floors", str(tmp_path / "nothing")]) == 2
    assert "no such folder" in capsys.readouterr().err
    words = ["floors", str(walks.path), "--trials", "1", "--only", "popularity"]
    assert main([*words, "--out", str(tmp_path / "nothing" / "copy.json")]) == 2
    assert "copy.json: cannot be written" in capsys.readouterr().err
    assert (walks.path / "floors.json").is_file()

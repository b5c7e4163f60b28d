"""recsys data describe through the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recsys.cli import main
from recsys.features.dataset import PreparedDataset


def test_a_log_is_described_written_and_drawn(
    circle_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "describe", str(circle_csv), "--out", str(tmp_path / "found"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["counts"]["users"] == 150
    stored = json.loads((tmp_path / "found" / "describe.json").read_text())
    assert stored == values
    assert (tmp_path / "found" / "describe.png").stat().st_size > 10_000
    assert main(["data", "describe", str(circle_csv)]) == 0
    out = capsys.readouterr().out
    assert "150 (str ids)" in out
    assert f"next: recsys prepare --source {circle_csv}" in out


def test_settings_reach_the_reader(circle_csv: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "describe", str(circle_csv), "--set", "read.order=rows", "--set", "bot_events=14", "--json"]
    assert main(words) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["order"], values["bots"]["more_events_than"]) == ("rows", 14)
    assert main(["data", "describe", str(circle_csv), "--set", "bot_event=14"]) == 2
    assert "bot_events" in capsys.readouterr().err


def test_a_dataset_with_a_leak_is_shown_and_ends_with_two(
    circle: PreparedDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "describe", str(circle.path)]) == 0
    assert "leaky, declared" in capsys.readouterr().out
    shutil.copytree(circle.path, tmp_path / "data")
    file = tmp_path / "data" / "shards" / "00000" / "users.npy"
    users = np.load(file)
    users[5] = users[4]
    np.save(file, users)
    assert main(["data", "describe", str(tmp_path / "data")]) == 2
    shown = capsys.readouterr()
    assert "duplicated user" in shown.out
    assert "error: " in shown.err
    assert "duplicated user" in shown.err
    assert main(["data", "describe", str(tmp_path / "data"), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert {"changed bytes", "duplicated user"} <= {leak["name"] for leak in found["leaks"]}


def test_what_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "describe", str(tmp_path / "absent.csv")]) == 2
    assert "absent.csv: no such file" in capsys.readouterr().err


def test_markup_in_the_data_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text("user,item,ts,event\n1,2,1500000000,[/view]\n1,3,1500000001,[red]\n")
    assert main(["data", "describe", str(tmp_path / "log.csv")]) == 0
    out = capsys.readouterr().out
    assert "[/view]" in out
    assert "[red]" in out

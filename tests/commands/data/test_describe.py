"""recsys data describe through the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
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


def test_the_events_of_the_parts_add_up_and_targets_stand_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By time 80 of 100 events train; users 8 and 9 come later and have no history; 7 is asked for the next event."""
    rows = [f"{n % 8 if n < 80 else 7 + n % 3},{n % 9},{1_500_000_000 + n}" for n in range(100)]
    (tmp_path / "log.csv").write_text("user,item,ts\n" + "\n".join(rows) + "\n")
    words = ["--out", str(tmp_path / "data"), "--set", "split.target=next"]
    assert main(["prepare", "--source", str(tmp_path / "log.csv"), *words]) == 0
    capsys.readouterr()
    assert main(["data", "describe", str(tmp_path / "data"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["events_by_part"] == {"train": 80, "valid": 10, "test": 10}
    assert main(["data", "describe", str(tmp_path / "data")]) == 0
    lines = [line.replace("│", " ").replace("┃", " ").split() for line in capsys.readouterr().out.splitlines()]
    header = next(line for line in lines if line[:1] == ["part"])
    assert header == ["part", "users", "events", "targets", "cold", "users", "never", "trained"]
    valid = next(line for line in lines if line[:1] == ["valid"])
    assert valid[2:4] == ["10", "1"]  # events, targets


def test_times_are_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {"a": ["1500000000", "1500000001"], "b": ["2020-01-01T00:00:00", "2020-01-02T00:00:00"]}
    for name, (first, last) in times.items():
        (tmp_path / f"{name}.csv").write_text(f"user,item,ts\n1,2,{first}\n1,3,{last}\n")
    frame = pl.DataFrame({"user_id": [1, 1], "item_id": [2, 3], "timestamp": [1_500_000_000, 1_500_000_001]})
    frame.with_columns(pl.from_epoch("timestamp")).write_parquet(tmp_path / "c.parquet")
    for name, told in (("a.csv", "numbers in s"), ("b.csv", "ISO 8601"), ("c.parquet", "timestamp column")):
        assert main(["data", "describe", str(tmp_path / name)]) == 0
        assert f"time, times: {told}" in capsys.readouterr().out


def test_what_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "describe", str(tmp_path / "absent.csv")]) == 2
    assert "absent.csv: no such file" in capsys.readouterr().err


def test_markup_in_the_data_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text("user,item,ts,event\n1,2,1500000000,[/view]\n1,3,1500000001,[red]\n")
    assert main(["data", "describe", str(tmp_path / "log.csv")]) == 0
    out = capsys.readouterr().out
    assert "[/view]" in out
    assert "[red]" in out


@pytest.mark.parametrize(
    ("text", "reason", "setting"),
    [
        (
            "user_id,item_id,weight,timestamp\n" + "1,2,1,-1500000000\n" * 100,
            "timestamp is negative",
            "read.order=time",
        ),
        (f"user_id,item_id\n{2**63},1\n{2**63 + 1},2\n", "user_id is beyond int64", "read.user_ids=int"),
        ("user_id,item_id\n1\n3\n", "missing fields: 1 of 2", "read.format=csv"),
    ],
)
def test_a_log_without_a_usable_line_is_described_with_its_reasons(
    text: str, reason: str, setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.csv").write_text(text)
    words = ["data", "describe", str(tmp_path / "log.csv"), "--set", setting]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert reason in out
    assert "no usable event: mend what is rejected" in out
    assert "events of a user" not in out
    assert main([*words, "--json", "--out", str(tmp_path / "found")]) == 0
    values = json.loads(capsys.readouterr().out)
    lines = text.count("\n") - 1
    assert values["counts"] | {"lines": lines, "good": 0, "events": 0, "users": 0, "items": 0} == values["counts"]
    assert values["counts"]["rejected_by_reason"] == {reason: lines}
    assert (tmp_path / "found" / "describe.png").stat().st_size > 10_000

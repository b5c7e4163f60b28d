"""A line of figures: what stands in it."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.support.record import append


def test_a_path_of_the_machine_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = {"data": str(tmp_path / "runs" / "data"), "rows": [{"n": 1, "at": f"from {tmp_path}/a"}]}
    file = append("figures", figures, tmp_path / "results")
    text = file.read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["data"] == "runs/data"
    assert json.loads(text)["rows"] == [{"n": 1, "at": "from a"}]


def test_the_running_command_stands_beside_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["anything", "--sets", "two words"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", sys.modules["benchmarks.support.record"].__spec__)
    file = append("figures", {}, tmp_path)
    assert json.loads(file.read_text())["command"] == "python -m benchmarks.support.record --sets 'two words'"
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    assert json.loads(append("other", {}, tmp_path).read_text())["command"].startswith("python anything --sets")

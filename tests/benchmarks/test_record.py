"""A line of figures: what stands in it."""

import json
from pathlib import Path

import pytest

from benchmarks.support.record import append


def test_a_path_of_the_machine_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = {"data": str(tmp_path / "runs" / "data"), "rows": [{"n": 1, "at": f"from {tmp_path}/a"}]}
    file = append("figures", "python -m benchmarks.figures", figures, tmp_path / "results")
    text = file.read_text()
    assert str(tmp_path) not in text
    assert json.loads(text)["data"] == "runs/data"
    assert json.loads(text)["rows"] == [{"n": 1, "at": "from a"}]

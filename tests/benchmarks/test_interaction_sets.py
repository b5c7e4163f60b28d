from pathlib import Path

import pytest

from benchmarks.support.interaction_sets import prepared


def test_a_set_whose_file_is_missing_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"^error: .*sequences.parquet"):
        prepared("ml-1m", tmp_path / "out")

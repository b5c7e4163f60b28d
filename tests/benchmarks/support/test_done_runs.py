from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.support.done_runs import DoneRuns


def test_runs_that_stand_are_not_done_again_and_a_cut_line_is(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "runs.jsonl"
    ran: list[Any] = []

    def run(key: Mapping[str, Any]) -> dict[str, int]:
        if key["n"] == 2 and len(ran) < 3:
            ran.append("stopped")
            raise KeyboardInterrupt
        ran.append(key["n"])
        return {"square": key["n"] ** 2}

    keys = [{"n": n, "x": None} for n in range(4)]
    with pytest.raises(KeyboardInterrupt):
        DoneRuns(file).all_of(keys, run)
    file.write_bytes(file.read_bytes()[:-5])  # killed while it wrote the second
    rows = DoneRuns(file).all_of(keys, run)
    assert ran == [0, 1, "stopped", 1, 2, 3]
    assert [row["square"] for row in rows] == [0, 1, 4, 9]
    assert DoneRuns(file).find({"n": 3, "x": None}) == rows[3]
    assert DoneRuns(file).find({"n": 3}) is None

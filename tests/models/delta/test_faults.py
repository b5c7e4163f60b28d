"""A machine that goes down at any moment: the log holds what was acknowledged, bit for bit, or more."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from benchmarks.support.crash_points import failures
from benchmarks.table_faults import deaths
from recsys.models.delta.rows import MEMORY_BYTES


@pytest.mark.parametrize("memory_bytes", [1, MEMORY_BYTES])
def test_every_crash_leaves_what_was_acknowledged(memory_bytes: int) -> None:
    assert list(failures(memory_bytes=memory_bytes)) == []


@pytest.mark.parametrize(
    "forgotten", [{"syncs_files": False}, {"syncs_folders": False}, {"syncs_files": False, "memory_bytes": 1}]
)
def test_a_log_that_forgets_to_sync_is_found_out(forgotten: Any) -> None:
    assert list(islice(failures(**forgotten), 1))


@pytest.mark.slow
def test_a_killed_trainer_loses_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = deaths(5, 1, tmp_path)
    assert [death.problem for death in found] == [""] * 5, capsys.readouterr().out
    assert found[-1].restored > 0

"""A machine that goes down at any moment: the log holds what was acknowledged, bit for bit, or more."""

from itertools import islice
from typing import Any

import pytest

from benchmarks.support.crash_points import failures


def test_every_crash_leaves_what_was_acknowledged() -> None:
    assert list(failures()) == []


@pytest.mark.parametrize("forgotten", [{"syncs_files": False}, {"syncs_folders": False}])
def test_a_log_that_forgets_to_sync_is_found_out(forgotten: Any) -> None:
    assert list(islice(failures(**forgotten), 1))

"""Rows of the launch tables: found by architecture, noted while compiling, read from another folder for a while."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from recsys.kernels.launch import (
    LAUNCHES,
    architecture,
    compile_target,
    compiling_for,
    find_launch,
    launch_of,
    table,
    tables_in,
)

CPU = torch.device("cpu")
TABLE = {
    "sm_80": {"forward": {"width=64": {"BLOCK_M": 64}, "width=32": {"BLOCK_M": 32}}},
    "sm_90": {"forward": {"width=64": {"BLOCK_M": 128}}},
    "interpret": {"forward": {"width=64": {"BLOCK_M": 16}}},
}


@pytest.fixture(autouse=True)
def _tables(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "gram.json").write_text(json.dumps(TABLE))
    with tables_in(tmp_path):
        yield


@pytest.mark.parametrize(("target", "block"), [("sm_80", 64), ("sm_86", 64), ("sm_90", 128), ("sm_100", 128)])
def test_an_architecture_takes_the_newest_rows_that_are_not_newer(target: str, block: int) -> None:
    with compiling_for(target):
        assert launch_of("gram", "forward", CPU, width=64) == {"BLOCK_M": block}


def test_a_cpu_takes_the_rows_of_the_interpreter() -> None:
    assert architecture(CPU) == "interpret"
    assert launch_of("gram", "forward", CPU, width=64) == {"BLOCK_M": 16}


def test_a_missing_row_is_named_with_its_remedy() -> None:
    wanted = r"launches/gram.json has no row 'width=7,has_bias=1' for forward on sm_75; add it by python -m"
    with compiling_for("sm_75"), pytest.raises(RuntimeError, match=wanted):
        launch_of("gram", "forward", CPU, width=7, has_bias=True)


def test_rows_asked_for_while_compiling_are_noted_and_no_others() -> None:
    launch_of("gram", "forward", CPU, width=64)
    with compiling_for("sm_80") as lookups:
        assert compile_target() == "sm_80"
        launch_of("gram", "forward", CPU, width=32)
    launch_of("gram", "forward", CPU, width=64)
    assert [(row.op, row.kernel, row.architecture, row.name) for row in lookups] == [
        ("gram", "forward", "sm_80", "width=32")
    ]
    assert lookups[0].row == {"BLOCK_M": 32}
    assert compile_target() is None


def test_tables_of_another_folder_are_read_for_a_while(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "gram.json").write_text(json.dumps({"interpret": {"forward": {"width=64": {"BLOCK_M": 8}}}}))
    with tables_in(other):
        assert launch_of("gram", "forward", CPU, width=64) == {"BLOCK_M": 8}
    assert launch_of("gram", "forward", CPU, width=64) == {"BLOCK_M": 16}
    assert table("gram") == TABLE
    assert LAUNCHES.name == "launches"


def test_a_row_that_is_not_there_is_none_and_is_not_noted() -> None:
    with compiling_for("sm_80") as lookups:
        assert find_launch("gram", "forward", CPU, width=7) is None
        assert find_launch("gram", "sideways", CPU, width=64) is None
    assert lookups == []


def test_a_star_stands_for_every_row_that_is_not_named(tmp_path: Path) -> None:
    rows = {"*": {"BLOCK_M": 1}, "width=64": {"BLOCK_M": 2}}
    (tmp_path / "star.json").write_text(json.dumps({"interpret": {"forward": rows}}))
    assert launch_of("star", "forward", CPU, width=64) == {"BLOCK_M": 2}
    assert launch_of("star", "forward", CPU, width=8) == {"BLOCK_M": 1}

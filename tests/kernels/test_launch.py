import json
from pathlib import Path

import pytest
import torch

from recsys.kernels import launch
from recsys.kernels.launch import architecture, compile_target, compiling_for, find_launch, launch_of

CPU = torch.device("cpu")


@pytest.fixture
def op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    table = {
        "sm_80": {"forward": {"width=64,has_bias=0": {"BLOCK": 32}}},
        "sm_90": {"forward": {"width=64,has_bias=0": {"BLOCK": 64}}},
        "interpret": {"forward": {"*": {"BLOCK": 16}}},
    }
    (tmp_path / "some.json").write_text(json.dumps(table))
    monkeypatch.setattr(launch, "LAUNCHES", tmp_path)
    launch._row.cache_clear()
    return "some"


@pytest.mark.parametrize(("target", "block"), [("sm_80", 32), ("sm_86", 32), ("sm_90", 64), ("sm_120", 64)])
def test_a_newer_gpu_takes_the_rows_of_the_newest_known_one(op: str, target: str, block: int) -> None:
    with compiling_for(target):
        assert architecture(CPU) == target
        assert launch_of(op, "forward", CPU, width=64, has_bias=False)["BLOCK"] == block


def test_the_interpreter_has_a_row_for_all(op: str) -> None:
    assert compile_target() is None
    assert launch_of(op, "forward", CPU, width=8, has_bias=True)["BLOCK"] == 16


def test_a_missing_row_is_named_with_its_remedy(op: str) -> None:
    with compiling_for("sm_90"):
        assert find_launch(op, "forward", CPU, width=32, has_bias=0) is None
        with pytest.raises(RuntimeError, match=r"some.json has no row 'width=32,has_bias=0' for forward on sm_90; add"):
            launch_of(op, "forward", CPU, width=32, has_bias=0)
    with compiling_for("sm_70"), pytest.raises(RuntimeError, match="no row .* on sm_70"):
        launch_of(op, "forward", CPU, width=64, has_bias=0)

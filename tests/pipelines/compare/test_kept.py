from pathlib import Path

import numpy as np
import pytest

from recsys.pipelines.compare.kept import KeptSteps


def test_a_step_is_found_again_for_the_same_inputs_alone(tmp_path: Path) -> None:
    kept = KeptSteps(tmp_path / "steps")
    inputs = {"data": "ab", "shape": (1, 2), "trials": 60}
    assert kept.find("floors", inputs) is None
    kept.keep("floors", inputs, {"seconds": 1.5}, np.arange(3.0))
    assert kept.find("floors", inputs) == {"seconds": 1.5}
    assert np.array_equal(kept.array("floors"), [0.0, 1.0, 2.0])  # type: ignore[arg-type]  # None would be unequal
    assert kept.find("floors", {**inputs, "trials": 61}) is None
    assert kept.find("models", inputs) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"inputs": {}}', '{"values": {}}'])
def test_a_damaged_file_counts_as_absent(tmp_path: Path, text: str) -> None:
    (tmp_path / "floors.json").write_text(text)
    (tmp_path / "floors.npy").write_text(text)
    kept = KeptSteps(tmp_path)
    assert kept.find("floors", {}) is None
    assert kept.array("floors") is None

"""A prepared dataset's figures are those of its log; its leaks are named."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.describe.advice import advice
from recsys.features.describe.config import DescribeConfig
from recsys.features.describe.dataset import describe_dataset
from recsys.features.describe.source import describe_source
from recsys.features.prepare import PrepareConfig, prepare


def test_a_dataset_without_filters_is_described_as_its_log_is(circle: PreparedDataset, circle_csv: Path) -> None:
    log = describe_source(circle_csv, DescribeConfig(), lambda line: None)  # noqa: ARG005  # told of nothing
    found = describe_dataset(circle.path, DescribeConfig())
    for part in ("lengths", "popularity", "repeats", "ties", "duplicates", "time"):
        assert found[part] == log[part], part
    longest = ([user["events"] for user in values["bots"].pop("longest")] for values in (found, log))
    assert next(longest) == next(longest)
    assert found["bots"] == log["bots"]
    assert found["leaks"] == []
    assert found["splits"] == circle.manifest["splits"]
    assert "trains on other users' future, as declared" in advice(found)[0]


@pytest.mark.parametrize("cuts", [None, [1, 2, 3]])
def test_a_split_by_time_without_its_cuts_is_described_all_the_same(
    circle_csv: Path, cuts: list[int] | None, tmp_path: Path
) -> None:
    prepare(circle_csv, tmp_path / "data", PrepareConfig())
    file = tmp_path / "data" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cuts_us": cuts}))
    found = describe_dataset(tmp_path / "data", DescribeConfig())
    assert {leak["name"] for leak in found["leaks"]} == {"misplaced cut"}


def test_a_byte_that_was_changed_is_a_leak_by_name(circle: PreparedDataset, tmp_path: Path) -> None:
    shutil.copytree(circle.path, tmp_path / "data")
    file = tmp_path / "data" / "shards" / "00000" / "train_end.npy"
    cuts = np.load(file)
    cuts[3] += 1
    np.save(file, cuts)
    found = describe_dataset(tmp_path / "data", DescribeConfig())
    assert {leak["name"] for leak in found["leaks"]} == {
        "changed bytes",
        "changed manifest",
        "changed split",
        "misplaced cut",
    }
    assert "the dataset leaks" in advice(found)[0]


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no prepared dataset"):
        describe_dataset(tmp_path, DescribeConfig())

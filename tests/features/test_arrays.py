from pathlib import Path

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.features.arrays import load_array


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_an_array_comes_back_read_only(size: int, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(size, dtype=np.int64))
    loaded = load_array(tmp_path / "a.npy", np.int64)
    assert loaded.tolist() == list(range(size))
    assert size == 0 or isinstance(loaded, np.memmap)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_cut_file_is_one_clear_line(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(10, dtype=np.int64))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"a\.npy: damaged or cut short") as caught:
        load_array(path, np.int64)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("array", [np.zeros(3, np.int32), np.zeros((3, 1), np.int64), np.zeros(3)])
def test_another_type_or_rank_is_refused(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DataError, match="wanted int64 of rank 1"):
        load_array(tmp_path / "a.npy", np.int64)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"a\.npy"):
        load_array(tmp_path / "a.npy", np.int64)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.npy: missing"):
        load_array(tmp_path / "b.npy", np.int64)

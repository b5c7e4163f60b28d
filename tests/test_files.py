import json
import resource
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.errors import InputError, StorageError
from recsys.files import recover_folder, replace_folder, sha256_of, storage_errors, write_json


def test_json_is_written_whole_or_the_older_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"b": 1, "a": [2]})
    assert json.loads(file.read_text()) == {"a": [2], "b": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"a": float("nan")})
    assert json.loads(file.read_text()) == {"a": [2], "b": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a").startswith("ba7816bf8f01cfea")


def test_a_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    for name, text in (("old", "1"), ("draft", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    replace_folder(tmp_path / "old", tmp_path / "draft")
    assert (tmp_path / "old" / "file").read_text() == "2"
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
    with pytest.raises(OSError, match="No such file"):
        replace_folder(tmp_path / "old", tmp_path / "absent")
    assert (tmp_path / "old" / "file").read_text() == "2"


def make_folder(path: Path) -> None:
    with storage_errors(path.parent, "wait"):
        path.mkdir()


def write(path: Path) -> None:
    with storage_errors(path, "wait"):
        path.write_text("x" * 10_000)


def test_the_callers_fault_and_the_disks_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\); name another place"):
        make_folder(tmp_path / "file" / "below")
    with pytest.raises(StorageError, match=r"/dev/full: cannot be written \(No space left on device\); wait"):
        write(Path("/dev/full"))


def test_what_polars_tells_in_words_alone_is_understood(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": range(100_000)})
    with pytest.raises(StorageError, match="No space left on device"), storage_errors(tmp_path, "wait"):
        frame.write_parquet("/dev/full")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "a.parquet", tmp_path):
        with pytest.raises(InputError, match="name another place"), storage_errors(place, "wait"):
            frame.write_parquet(place)


def test_a_write_that_fell_short_without_a_number_tells_the_disk_is_full(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_096, limit[1]))
    try:
        wanted = r"a: cannot be written \(disk full or file too large\); wait$"
        with pytest.raises(StorageError, match=wanted), storage_errors(tmp_path / "a", "wait"):
            np.save(tmp_path / "a.npy", np.zeros(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_bug_stays_a_bug(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), storage_errors(tmp_path, "wait"):
        raise ZeroDivisionError


def folder(path: Path, text: str) -> None:
    path.mkdir()
    (path / "file").write_text(text)


def test_a_folder_that_was_set_aside_comes_back_and_drafts_go(tmp_path: Path) -> None:
    folder(tmp_path / ".bundle.7.old", "older")
    folder(tmp_path / ".bundle.7.tmp", "draft")
    folder(tmp_path / ".another.7.tmp", "not ours")
    recover_folder(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "file").read_text() == "older"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".another.7.tmp", "bundle"]


def test_a_folder_that_stands_is_newer_than_what_was_set_aside(tmp_path: Path) -> None:
    folder(tmp_path / "bundle", "newer")
    folder(tmp_path / ".bundle.7.old", "older")
    recover_folder(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle" / "file").read_text() == "newer"

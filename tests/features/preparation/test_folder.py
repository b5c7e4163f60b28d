"""What lies at the place of a dataset: foreign files, a full disk, what killed runs left."""

import os
import random
import subprocess
from pathlib import Path

import pytest

from recsys.errors import DataError, InputError, StorageError
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from tests.features.logs import START, bytes_of, write_log
from tests.full_disk import most_bytes_of_a_file


@pytest.mark.parametrize("name", ["notes.txt", "shards/mine.csv", "data.csv"])
def test_what_others_wrote_is_never_replaced(name: str, tmp_path: Path) -> None:
    out = tmp_path / "data"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("precious")
    with pytest.raises(DataError, match="will not be replaced; name an empty or new folder"):
        prepare(write_log(tmp_path / "log.csv"), out, PrepareConfig())
    assert (out / name).read_text() == "precious"


def test_a_foreign_file_beside_a_dataset_keeps_it_from_being_replaced(tmp_path: Path) -> None:
    out = tmp_path / "data"
    prepare(write_log(tmp_path / "log.csv"), out, PrepareConfig())
    (out / "notes.txt").write_text("precious")
    with pytest.raises(DataError, match=r"holds notes\.txt and will not be replaced"):
        prepare(tmp_path / "log.csv", out, PrepareConfig(split=SplitConfig(protocol="loo")))
    assert PreparedDataset.open(out).protocol == "time"


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    log = write_log(tmp_path / "log.csv")
    assert prepare(log, tmp_path / "data", PrepareConfig()).num_events == 240
    with pytest.raises(DataError, match="is a file; name a folder"):
        prepare(log, log, PrepareConfig())


def test_a_forbidden_folder_is_the_callers_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"data: cannot be written \(Not a directory\); name another place"):
        prepare(write_log(tmp_path / "log.csv"), tmp_path / "file" / "data", PrepareConfig())


def test_a_full_disk_leaves_the_old_dataset(tmp_path: Path) -> None:
    log, other = write_log(tmp_path / "log.csv"), write_log(tmp_path / "other.csv", num_users=400, seed=1)
    before = bytes_of(prepare(log, tmp_path / "data", PrepareConfig()).path)
    with (
        pytest.raises(StorageError, match=r"data: cannot be written \(.+\); free space or name") as caught,
        most_bytes_of_a_file(2_000),
    ):
        prepare(other, tmp_path / "data", PrepareConfig())
    assert not isinstance(caught.value, InputError)
    assert bytes_of(tmp_path / "data") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "log.csv", "other.csv"]


def test_rejected_lines_that_a_full_disk_cannot_hold_are_one_line(tmp_path: Path) -> None:
    rng = random.Random(0)
    text = "".join(f"u{n},{rng.randbytes(20).hex()}\n" for n in range(400))
    (tmp_path / "log.csv").write_text(f"user,item,ts\nu,1,{START}\n" + text)
    with pytest.raises(StorageError, match=r"data: cannot be written \(.*File too large"), most_bytes_of_a_file(2_000):
        prepare(tmp_path / "log.csv", tmp_path / "data", PrepareConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_what_killed_runs_left_is_removed_and_what_runs_is_kept(tmp_path: Path) -> None:
    log, dead = write_log(tmp_path / "log.csv"), subprocess.Popen(["true"])
    dead.wait()
    names = [f".data.{dead.pid}.tmp", f".data.{dead.pid}.old", f".data.{os.getppid()}.tmp", f".other.{dead.pid}.tmp"]
    for name in names:
        (tmp_path / name).mkdir()
    prepare(log, tmp_path / "data", PrepareConfig())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["data", "log.csv", *names[2:]])


def test_a_dataset_that_a_killed_run_set_aside_is_put_back(tmp_path: Path) -> None:
    log, out, dead = write_log(tmp_path / "log.csv"), tmp_path / "data", subprocess.Popen(["true"])
    dead.wait()
    prepare(log, out, PrepareConfig())
    out.rename(tmp_path / f".data.{dead.pid}.old")
    said: list[str] = []
    prepare(log, out, PrepareConfig(), said.append)
    assert said[-1] == f"{out}: up to date"


def test_floors_belong_to_a_dataset_and_go_with_it(tmp_path: Path) -> None:
    log, out = write_log(tmp_path / "log.csv"), tmp_path / "data"
    prepare(log, out, PrepareConfig())
    (out / "floors.json").write_text("{}")
    prepare(log, out, PrepareConfig(split=SplitConfig(protocol="loo")))
    assert not (out / "floors.json").exists()

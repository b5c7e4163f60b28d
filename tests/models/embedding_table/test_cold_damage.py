"""What may happen to the file of a table's cold rows: others that open it, damage, full disks, forks, kills."""

import errno
import gc
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recsys.errors import CheckpointError, StorageError
from recsys.models.embedding_table import CategoryPrior, RowOptimizer, cold_file, cold_rows
from recsys.models.embedding_table.cold_file import HEADER_BYTES, MAGIC
from recsys.models.embedding_table.cold_rows import ColdRows
from tests.full_disk import most_bytes_of_a_file
from tests.models.embedding_table.cold_tables import both, ids_of, table_of, train
from tests.models.tables import assert_same


def test_a_file_is_open_in_one_table_at_a_time(tmp_path: Path) -> None:
    table = table_of(tmp_path / "rows")
    with pytest.raises(CheckpointError, match="rows is in use by another table or process"):
        table_of(tmp_path / "rows")
    table.close()
    table = table_of(tmp_path / "rows")
    del table
    gc.collect()
    table_of(tmp_path / "rows").close()


def test_a_file_of_something_else_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "rows").write_text("my thesis")
    with pytest.raises(CheckpointError, match="rows is no cold file; name another path: nothing was written to it"):
        table_of(tmp_path / "rows")
    assert (tmp_path / "rows").read_text() == "my thesis"
    _, cold = both(tmp_path / "others")
    cold.close("1")
    with pytest.raises(CheckpointError, match=r"others has width=5, wanted 7; it is of another table"):
        table_of(tmp_path / "others", width=7)
    with pytest.raises(StorageError, match="nowhere/rows cannot be opened: No such file"):
        table_of(tmp_path / "nowhere" / "rows")


def test_a_file_without_a_mark_or_of_another_version_is_refused(tmp_path: Path) -> None:
    hot, cold = both(tmp_path / "rows")
    rest = cold.close("epoch 1, delta 20")
    with pytest.raises(ValueError, match="rows is closed"):
        cold.pages.gather(ids_of(0))
    cold = table_of(tmp_path / "rows")
    with pytest.raises(
        CheckpointError, match="rows is of version 'epoch 1, delta 20', wanted 'epoch 1, delta 21'; load"
    ):
        cold.resume(rest, "epoch 1, delta 21")
    cold.resume(rest, "epoch 1, delta 20")
    assert_same(hot, cold)
    cold.close()
    cold = table_of(tmp_path / "rows")
    with pytest.raises(CheckpointError, match="bears no mark of a clean end: its process was killed, or it is empty"):
        cold.resume(rest, "epoch 1, delta 20")
    cold.load_state(hot.state())
    assert_same(hot, cold)


def test_a_file_that_is_not_taken_up_is_written_anew_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, cold = both(tmp_path / "rows")
    cold.close("5")
    with caplog.at_level(logging.WARNING):
        assert_same(*both(tmp_path / "rows", steps=10))
    assert "of version '5' was not taken up; its rows are dropped, it is written anew" in caplog.text


@pytest.mark.parametrize("missing", [1, 400, -1])
def test_a_file_that_was_cut_short_is_named_where_its_memory_would_end_the_process(
    tmp_path: Path, missing: int
) -> None:
    _, cold = both(tmp_path / "rows")
    content, before = (tmp_path / "rows").read_bytes(), cold.state()
    length = 4096 if missing < 0 else len(content) - missing
    os.truncate(tmp_path / "rows", length)
    message = f"has {length:,} bytes; wanted {len(content):,}: something cut it short; load .* by load_state"
    for use in (
        lambda: cold.pages.gather(torch.arange(12)),
        lambda: cold.erase(ids_of(1, 2)),
        lambda: train(cold, ids_of(*range(12)), 30),
        lambda: cold.close("5"),
    ):
        with pytest.raises(StorageError, match=message):
            use()
    (tmp_path / "rows").write_bytes(content)
    after = cold.state()
    assert [name for name in before if "clock" not in name and not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("length", [0, 3, 8, 11, 12, 100, 4095, 4096, 4500])
@pytest.mark.parametrize("steps", [0, 1, 20, 40])
def test_a_table_whose_file_was_cut_short_loads_a_checkpoint(tmp_path: Path, steps: int, length: int) -> None:
    """Of fewer rows than memory has room for, and of more than there were."""
    other, _ = both(tmp_path / "others", steps=steps, most=3 if steps == 1 else 30)
    _, cold = both(tmp_path / "rows")
    os.truncate(tmp_path / "rows", length)
    cold.load_state(other.state())
    assert_same(other, cold)
    for ids in (ids_of(3, 5, 7, 9), ids_of(1, 2, 3, 29)):
        train(other, ids, 50)
        train(cold, ids, 50)
    assert_same(other, cold)
    cold.close()
    again = table_of(tmp_path / "rows")  # a file that a later start takes
    again.load_state(other.state())
    assert_same(other, again)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 11, 12, 100, 4095])
def test_a_marked_file_whose_header_was_cut_is_torn_and_one_of_something_else_is_not(
    tmp_path: Path, length: int
) -> None:
    hot, cold = both(tmp_path / "rows")
    state, rest = hot.state(), cold.close("5")
    os.truncate(tmp_path / "rows", length)
    again = table_of(tmp_path / "rows")
    with pytest.raises(CheckpointError, match="bears no mark of a clean end"):
        again.resume(rest, "5")
    again.load_state(state)
    assert_same(hot, again)
    (tmp_path / "text").write_bytes(b"abcdefghijkl"[: max(1, min(length, 12))])
    with pytest.raises(CheckpointError, match="is no cold file"):
        table_of(tmp_path / "text")


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_a_closed_table_takes_no_state_and_no_version(tmp_path: Path, steps: int) -> None:
    other, _ = both(tmp_path / "others", steps=steps, most=3 if steps == 1 else 12)
    _, cold = both(tmp_path / "rows")
    cold.close("5")
    with pytest.raises(ValueError, match="is closed; make a table anew to go on with it"):
        cold.load_state(other.state())
    with pytest.raises(ValueError, match="is closed; make a table anew to go on with it"):
        cold.close("7")
    cold.close()


def test_a_resume_from_a_file_that_is_cut_beneath_it_is_a_checkpoint_error(tmp_path: Path) -> None:
    _, cold = both(tmp_path / "rows")
    rest = cold.close("5")
    again = table_of(tmp_path / "rows")
    with pytest.raises(CheckpointError, match="is of version '5', wanted '6'"):
        again.resume(rest, "6")
    assert isinstance(again.pages, ColdRows)
    again.pages.file._chunks.grow(1)  # as a resume that failed later leaves it
    os.truncate(tmp_path / "rows", 4500)
    with pytest.raises(CheckpointError, match="something cut it short"):
        again.resume(rest, "5")


def test_a_load_that_a_prior_refuses_leaves_a_good_file(tmp_path: Path) -> None:
    class Refusing(CategoryPrior):
        def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
            if "means" in state:
                raise KeyError("means")

    hot, cold = both(tmp_path / "rows")
    state, rest = hot.state(), cold.close("5")
    again = table_of(tmp_path / "rows")
    again.prior = Refusing(lambda ids: ids % 3, 3)
    with pytest.raises(ValueError, match="the prior does not take"):
        again.load_state(
            state | {"prior.fitted_at": torch.tensor([1, 3]), "prior.means": torch.zeros(3, 5, dtype=torch.float64)}
        )
    again.prior = None
    again.resume(rest, "5")
    assert_same(hot, again)


def test_all_rows_of_a_cut_file_may_be_forgotten(tmp_path: Path) -> None:
    _, cold = both(tmp_path / "rows")
    os.truncate(tmp_path / "rows", 4096)
    cold.pages.clear()
    assert (tmp_path / "rows").stat().st_size == 4992


def test_a_disk_that_is_full_halfway_leaves_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def halfway(descriptor: int, start: int, num_bytes: int) -> None:
        os.ftruncate(descriptor, start + num_bytes // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    hot, cold = both(tmp_path / "rows")
    state = hot.state()
    os.truncate(tmp_path / "rows", 4096)
    monkeypatch.setattr(cold_file, "_take_space", halfway)
    with pytest.raises(StorageError, match="cannot grow from 4,096 to 4,992 bytes again: No space left"):
        cold.load_state(state)
    assert (tmp_path / "rows").stat().st_size == 4096


def test_slots_that_a_cut_took_are_damage_and_a_full_disk_beneath_a_cut_file_is_named(tmp_path: Path) -> None:
    _, cold = both(tmp_path / "rows")
    assert isinstance(cold.pages, ColdRows)
    state = cold.state()
    os.truncate(tmp_path / "rows", 4096)
    with most_bytes_of_a_file(4500), pytest.raises(StorageError, match="was cut short and cannot grow from 4,096 to"):
        cold.load_state(state)
    assert (tmp_path / "rows").stat().st_size == 4096
    cold.pages.file.make_whole()
    with pytest.raises(StorageError, match="does not hold what was written"):
        cold.pages.gather(torch.arange(12))


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize("at", [0, 8, 16, 30, 55])
def test_a_damaged_slot_is_noticed(tmp_path: Path, at: int) -> None:
    hot, cold = both(tmp_path / "rows")
    assert isinstance(cold.pages, ColdRows)
    places = cold.pages.places.gather(torch.arange(12)).squeeze(1)
    row = int((places == cold_rows.COLD).nonzero()[0])
    _flip(tmp_path / "rows", 4096 + row * 56 + at)
    id_ = int(cold.ids_of(ids_of(row)))
    with pytest.raises(StorageError, match=f"slot {row} does not hold what was written for id {id_}; the disk failed"):
        cold.look_up(ids_of(99, id_))
    assert cold.index.find(ids_of(99)).tolist() == [-1]
    _flip(tmp_path / "rows", 4096 + row * 56 + at)
    for ids in (ids_of(3, id_, 5), ids_of(7, 8, 9, 3)):  # what was right is right still
        for table in (hot, cold):
            train(table, ids, 30)
    assert_same(hot, cold)
    places = cold.pages.places.gather(torch.arange(12)).squeeze(1)
    row = int((places == cold_rows.COLD).nonzero()[0])
    _flip(tmp_path / "rows", 4096 + row * 56 + at)
    rest = cold.close("5")
    cold = table_of(tmp_path / "rows")
    with pytest.raises(CheckpointError, match=f"slot {row} does not hold"):
        cold.resume(rest, "5")


def test_a_slot_that_holds_another_id_is_noticed(tmp_path: Path) -> None:
    _, cold = both(tmp_path / "rows")
    assert isinstance(cold.pages, ColdRows)
    one, other = (cold.pages.places.gather(torch.arange(12)).squeeze(1) == cold_rows.COLD).nonzero().squeeze(1)[:2]
    cold.pages.file._chunks.put(one[None], cold.pages.file._chunks.gather(other[None]))
    with pytest.raises(StorageError, match=f"slot {int(one)} does not hold what was written for id"):
        cold.pages.gather(one[None])


def test_a_slot_that_is_out_of_date_is_noticed(tmp_path: Path) -> None:
    hot, cold = both(tmp_path / "rows")
    rest = cold.close("5")
    old = (tmp_path / "rows").read_bytes()
    cold = table_of(tmp_path / "rows")
    cold.resume(rest, "5")
    train(cold, ids_of(1), 30)
    row = int(cold.find(ids_of(1)))
    rest = cold.close("6")
    cold = table_of(tmp_path / "rows")
    cold.resume(rest, "6")
    rest = cold.close("6")
    with (tmp_path / "rows").open("r+b") as file:
        file.seek(4096 + row * 56)
        file.write(old[4096 + row * 56 : 4096 + row * 56 + 56])
    cold = table_of(tmp_path / "rows")
    with pytest.raises(CheckpointError, match="holds rows that are older than its mark of version '6'"):
        cold.resume(rest, "6")
    cold.load_state(hot.state())
    assert_same(hot, cold)


def test_rows_that_the_machine_has_not_in_memory_are_asked_for_and_read(tmp_path: Path) -> None:
    hot, cold = table_of(None), table_of(tmp_path / "rows", 400)
    ids = torch.arange(2_000)
    for table in (hot, cold):
        train(table, ids, 0)
    rest = cold.close("5")
    with (tmp_path / "rows").open("rb") as file:  # as after the machine began anew
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cold = table_of(tmp_path / "rows", 400)
    cold.resume(rest, "5")
    order = torch.randperm(2_000, generator=torch.Generator().manual_seed(0))
    for table in (hot, cold):
        train(table, ids[order], 1)
    assert_same(hot, cold)


def test_a_torn_header_is_no_mark(tmp_path: Path) -> None:
    hot, cold = both(tmp_path / "rows")
    rest = cold.close("5")
    _flip(tmp_path / "rows", 40)
    cold = table_of(tmp_path / "rows")
    with pytest.raises(CheckpointError, match="bears no mark"):
        cold.resume(rest, "5")
    cold.load_state(hot.state())
    assert_same(hot, cold)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"chunk_slots": 0}, "chunk_slots=0, no power of two"),
        ({"chunk_slots": 3}, "chunk_slots=3, no power of two"),
        ({"chunk_slots": -4}, "chunk_slots=-4, no power of two"),
        ({"chunk_slots": 1 << 62}, f"chunk_slots={1 << 62}, no power of two"),
        ({"chunk_slots": "8"}, "chunk_slots='8', no power of two"),
        ({"chunk_slots": None}, "chunk_slots=None, no power of two"),
        ({"mark": {"version": "5"}}, "mark=.*, not a version and a sum"),
        ({"mark": {"version": "5", "sum": 1, "more": 1}}, "mark=.*, not a version and a sum"),
        ({"mark": 5}, "mark=5, not a version and a sum"),
        ({"mark": {"version": 5, "sum": 1}}, "mark=.*, whose version is no text"),
        ({"mark": {"version": "5", "sum": -1}}, "mark=.*, whose version is no text or whose sum"),
        ({"format": None}, "has format=None, wanted 1"),
        ([1], r"holds \[1\], no fields by name"),
        ("{", "holds no JSON"),
    ],
)
def test_a_header_of_odd_values_is_refused_and_the_file_stays(tmp_path: Path, header: Any, message: str) -> None:
    hot, cold = both(tmp_path / "rows")
    rest = cold.close("5")
    held = (tmp_path / "rows").read_bytes()
    start = len(MAGIC) + 4
    said = json.loads(held[start:HEADER_BYTES].rstrip(b"\0"))
    text = header if isinstance(header, str) else json.dumps(said | header if isinstance(header, dict) else header)
    block = text.encode().ljust(HEADER_BYTES - start, b"\0")
    odd = MAGIC + struct.pack("<I", zlib.crc32(block)) + block + held[HEADER_BYTES:]
    (tmp_path / "rows").write_bytes(odd)
    with pytest.raises(CheckpointError, match=message):
        table_of(tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == odd
    (tmp_path / "rows").write_bytes(held)
    cold = table_of(tmp_path / "rows")
    cold.resume(rest, "5")
    assert_same(hot, cold)


@pytest.mark.parametrize("eviction", ["none", "lru"])
def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path, eviction: str) -> None:
    hot, cold = both(tmp_path / "rows", most=14, capacity=40, eviction=eviction)
    before = cold.state()

    message = r"rows cannot grow from 4,992 to 5,440 bytes: File too large; nothing was lost: make room"
    for _ in range(2):
        with most_bytes_of_a_file(5000), pytest.raises(StorageError, match=message):
            cold.look_up(torch.arange(20))
        after = cold.state()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert cold.gauges()["file_bytes"] == 4992
    assert torch.equal(train(hot, torch.arange(20), 30), train(cold, torch.arange(20), 30))
    assert_same(hot, cold)


def test_a_full_disk_at_a_reload_changes_nothing(tmp_path: Path) -> None:
    larger, _ = both(tmp_path / "others", most=30, steps=40)
    hot, cold = both(tmp_path / "rows")
    with most_bytes_of_a_file(5000), pytest.raises(StorageError, match="rows cannot grow"):
        cold.load_state(larger.state())
    assert_same(hot, cold)


TRAINER = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from recsys.models.embedding_table import EmbeddingTable, RowOptimizer, TableConfig

folder = Path(sys.argv[1])
torch.set_num_threads(1)
config = TableConfig(width=16, optimizer=RowOptimizer("adam"), capacity=900, eviction="lru", hot_rows=50,
                     cold_file=str(folder / "rows"))
table = EmbeddingTable(config)
generator = torch.Generator().manual_seed(0)
for step in range(10**9):
    table.clock.set(step)
    rows = table.look_up(torch.randint(0, 1000, (64,), generator=generator))
    table.update(rows, table.pages.gather(rows), lr=0.01)
    table.advance()
    if step == 40:
        save_file(table.state(), folder / "new")
        (folder / "new").rename(folder / "checkpoint")
    if step % 50 == 49:
        print(step, int(table.gauges()["spills"]), flush=True)
"""


PARENT = """
import os, sys
import torch
from recsys.models.embedding_table import CollisionlessEmbedding, TableConfig

torch.set_num_threads(1)
config = TableConfig(width=4, hot_rows=10, cold_file=sys.argv[1])
embedding = CollisionlessEmbedding(config)

def train():
    embedding(torch.arange(100)).square().sum().backward()
    embedding.step(lr=0.1)

def child(use, ends):
    number = os.fork()
    if number == 0:
        try:
            use()
        except ValueError as error:
            print("refused" if "was opened by process" in str(error) else error, flush=True)
        else:
            print("used", flush=True)
        ends(0)
    os.waitpid(number, 0)

train()
state = embedding.table.state()
less = {name: value.clone() for name, value in CollisionlessEmbedding(TableConfig(width=4)).table.state().items()}
for use in (
    train,
    lambda: embedding.eval()(torch.arange(100)),
    lambda: embedding.erase(torch.arange(100)),
    lambda: embedding.table.load_state(less),
    lambda: embedding.table.close("5"),
    embedding.table.close,
):
    child(use, sys.exit)
    child(use, os._exit)
try:
    CollisionlessEmbedding(config)
    print("opened twice")
except ValueError:
    print("locked")
print(all(torch.equal(value, state[name]) for name, value in embedding.table.state().items()))
train()
embedding.table.close()
CollisionlessEmbedding(config)
print("opened")
"""


def test_a_forked_process_neither_uses_the_file_nor_unlocks_it(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PARENT, str(tmp_path / "rows")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split("\n") == [*["refused"] * 12, "locked", "True", "opened", ""], done.stderr


def test_a_killed_process_leaves_a_file_that_is_refused_and_rebuilt_exactly(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "width": 16,
        "optimizer": RowOptimizer("adam"),
        "init_std": 0.02,
        "capacity": 900,
        "eviction": "lru",
    }
    child = subprocess.Popen([sys.executable, "-c", TRAINER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    step = -1
    while step < 99:
        step, spills = map(int, child.stdout.readline().split())
    with pytest.raises(CheckpointError, match="in use by another table or process"):
        table_of(tmp_path / "rows", 50, **config)
    time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert spills > 1000

    state = load_file(tmp_path / "checkpoint")
    cold = table_of(tmp_path / "rows", 50, **config)
    with pytest.raises(
        CheckpointError, match=r"bears no mark of a clean end: its process was killed.*; load the table"
    ):
        cold.resume(state, "step 40")
    cold.load_state(state)
    hot = table_of(None, **config)
    generator = torch.Generator().manual_seed(0)
    for step in range(90):
        ids = torch.randint(0, 1000, (64,), generator=generator)
        for table in (hot, cold) if step > 40 else (hot,):
            table.clock.set(step)
            rows = table.look_up(ids)
            table.update(rows, table.pages.gather(rows), lr=0.01)
            table.advance()
        if step in (40, 89):
            assert_same(hot, cold)

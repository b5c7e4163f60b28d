"""A table of which most rows lie in a file against the one that is wholly in memory, bit for bit."""

import copy
import gc
import json
import logging
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from safetensors.torch import load_file

from recsys.errors import CheckpointError, StorageError
from recsys.models.embedding_table import (
    AdmissionConfig,
    CollisionlessEmbedding,
    EmbeddingTable,
    RowOptimizer,
    TableConfig,
    cold_rows,
)
from recsys.models.embedding_table.cold_file import HEADER_BYTES, MAGIC
from recsys.models.embedding_table.cold_rows import ColdRows

WIDTH = 5
ADAGRAD = RowOptimizer("adagrad", initial_accumulator=0.1)


def table_of(path: Path | None, hot_rows: int = 3, **settings: Any) -> EmbeddingTable:
    cold: dict[str, Any] = {} if path is None else {"hot_rows": hot_rows, "cold_file": str(path)}
    config = TableConfig(**{"width": WIDTH, "optimizer": ADAGRAD, "init_std": 1.0, **cold, **settings})
    return EmbeddingTable(config, page_rows=8)


def ids_of(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def train(table: EmbeddingTable, ids: torch.Tensor, second: float) -> torch.Tensor:
    """One step of two look-ups; the gradients are a function of the place and the vectors."""
    table.clock.set(second)
    rows = torch.cat([table.look_up(ids), table.look_up(ids[:2])])
    gradients = table.pages.gather(rows) * 0.5 + torch.arange(len(rows))[:, None] / 7
    table.update(rows, gradients, lr=0.3)
    table.advance()
    return rows


def assert_same(one: EmbeddingTable, other: EmbeddingTable) -> None:
    ours, theirs = one.state(), other.state()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def both(path: Path, steps: int = 20, most: int = 12, **settings: Any) -> tuple[EmbeddingTable, EmbeddingTable]:
    """A table in memory, and one with a file, after the same steps."""
    tables = table_of(None, **settings), table_of(path, **settings)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        ids = torch.randint(0, most, (4,), generator=generator)
        for table in tables:
            train(table, ids, step)
    return tables


class Tiers(RuleBasedStateMachine):
    """Whatever is called, both tables answer and hold the same."""

    @initialize(
        hot_rows=st.integers(1, 6),
        capacity=st.integers(2, 20),
        eviction=st.sampled_from(["none", "lru", "lfu", "ttl"]),
        threshold=st.integers(1, 2),
        optimizer=st.sampled_from([ADAGRAD, RowOptimizer("adam"), RowOptimizer("sgd")]),
    )
    def begin(self, hot_rows: int, capacity: int, eviction: str, threshold: int, optimizer: RowOptimizer) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.hot_rows = hot_rows
        self.settings: dict[str, Any] = {
            "capacity": capacity,
            "eviction": eviction,
            "ttl_s": 5,
            "optimizer": optimizer,
            "admission": AdmissionConfig(mode="threshold", threshold=threshold, capacity=8),
        }
        self.hot = table_of(None, **self.settings)
        self.cold = self._new()
        self.since = self.hot.follow()
        assert self.cold.follow() == self.since
        self.second = 0

    @rule(ids=st.lists(st.integers(-3, 16), max_size=10), wait=st.integers(0, 2))
    def train(self, ids: list[int], wait: int) -> None:
        self.second += wait
        rows = [train(table, ids_of(*ids), self.second) for table in (self.hot, self.cold)]
        assert torch.equal(*rows)

    @rule(wait=st.integers(0, 4))
    def expire(self, wait: int) -> None:
        self.second += wait
        for table in (self.hot, self.cold):
            table.clock.set(self.second)
        assert self.hot.expire() == self.cold.expire()

    @rule(ids=st.lists(st.integers(-3, 16), max_size=4))
    def erase(self, ids: list[int]) -> None:
        assert torch.equal(self.hot.erase(ids_of(*ids)), self.cold.erase(ids_of(*ids)))

    @rule(ids=st.lists(st.integers(-3, 16), max_size=10))
    def evaluate(self, ids: list[int]) -> None:
        moves = self._moves()
        rows = self.hot.find(ids_of(*ids)), self.cold.find(ids_of(*ids))
        assert torch.equal(*rows)
        assert torch.equal(self.hot.pages.gather(rows[0]), self.cold.pages.gather(rows[1]))
        known = rows[0][rows[0] >= 0]
        for ours, theirs in zip(self.hot.pages.read(known), self.cold.pages.read(known), strict=True):
            assert torch.equal(ours, theirs)
        assert self._moves() == moves

    @rule(ids=st.lists(st.integers(-3, 16), max_size=10, unique=True))
    def write(self, ids: list[int]) -> None:
        rows = self.hot.index.find(ids_of(*ids))
        rows = rows[rows >= 0]
        values = torch.arange(float(len(rows) * WIDTH)).view(-1, WIDTH)
        for table in (self.hot, self.cold):
            table.pages.write(rows, values, None, table.clock.tick)
            table.pages.states.put(rows.flip(0), table.pages.states.gather(rows) + 1)

    @rule()
    def changed(self) -> None:
        ours, theirs = (table.changes(self.since) for table in (self.hot, self.cold))
        assert torch.equal(ours.rows, theirs.rows)
        assert torch.equal(ours.deleted, theirs.deleted)
        assert torch.equal(self.hot.ids_of(ours.rows), self.cold.ids_of(ours.rows))

    @rule()
    def reload(self) -> None:
        state = self.hot.state()
        self.cold.load_state(state)

    @rule()
    def restart(self) -> None:
        rest = self.cold.close("version 7")
        assert not {"vectors", "states"} & rest.keys()
        self.cold = self._new()
        self.cold.resume(rest, "version 7")

    @rule()
    def die_and_restore(self) -> None:
        self.cold.close()
        self.cold = self._new()
        self.cold.load_state(self.hot.state())

    @invariant()
    def same(self) -> None:
        assert_same(self.hot, self.cold)
        gauges = self.cold.gauges()
        assert gauges["hot"] <= self.hot_rows
        assert gauges["hot"] + gauges["cold"] == gauges["size"] == self.hot.gauges()["size"]

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.cold.close()
            shutil.rmtree(self.folder)

    def _new(self) -> EmbeddingTable:
        return table_of(self.folder / "rows", self.hot_rows, **self.settings)

    def _moves(self) -> tuple[float, float]:
        gauges = self.cold.gauges()
        return gauges["promotions"], gauges["spills"]


TestTiers = Tiers.TestCase
TestTiers.settings = settings(max_examples=20, stateful_step_count=15, deadline=None)


def test_rows_leave_memory_for_the_file_and_come_back(tmp_path: Path) -> None:
    _, cold = both(tmp_path / "rows")
    gauges = cold.gauges()
    assert (gauges["hot"], gauges["cold"]) == (3, 9)
    assert gauges["promotions"] > 0
    assert gauges["spills"] == gauges["promotions"] + 12 - 3
    assert gauges["file_bytes"] == 4096 + 2 * 8 * (16 + 2 * 4 * WIDTH)
    assert isinstance(cold.pages, ColdRows)
    assert cold.pages.hot.vectors.num_bytes == 4 * 4 * WIDTH  # one page of four rows


def where(table: EmbeddingTable, *ids: int) -> list[bool]:
    """Whether the rows of ids lie in memory."""
    assert isinstance(table.pages, ColdRows)
    return [place >= 0 for place in table.pages.places.gather(table.index.find(ids_of(*ids))).squeeze(1).tolist()]


def test_the_row_that_was_used_longest_ago_leaves_memory(tmp_path: Path) -> None:
    table = table_of(tmp_path / "rows")
    for id_ in (1, 2, 3, 1, 4):
        train(table, ids_of(id_), 0)
    assert where(table, 1, 2, 3, 4) == [True, False, True, True]
    table.look_up(ids_of(3))
    train(table, ids_of(2), 0)
    assert where(table, 1, 2, 3, 4) == [False, True, True, True]


def test_rows_that_are_written_where_they_lie_in_the_file_are_written_whole(tmp_path: Path) -> None:
    hot, cold = both(tmp_path / "rows")
    rows = torch.arange(12)
    for table in (hot, cold):
        table.pages.write(rows, torch.ones(12, WIDTH), torch.full((12, WIDTH), 2.0), rows.int())
        table.erase(ids_of(0, 1))
    rest = cold.close("5")
    cold = table_of(tmp_path / "rows")
    cold.resume(rest, "5")
    assert_same(hot, cold)


def test_a_module_trains_with_rows_in_a_file_as_in_memory(tmp_path: Path) -> None:
    settings: Any = {"width": WIDTH, "capacity": 20, "eviction": "lru", "unknown": "learned", "id_dropout": 0.2}
    hot = CollisionlessEmbedding(TableConfig(**settings))
    cold = CollisionlessEmbedding(TableConfig(**settings, hot_rows=4, cold_file=str(tmp_path / "rows")))
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        ids = torch.randint(0, 40, (3, 4), generator=generator)
        for module in (hot, cold):
            module.clock(0)
            module(ids).square().sum().backward()
            module.step(0.1)
    ours, theirs = hot.state_dict(), cold.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def test_without_numba_the_rows_are_the_same_as_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys.kernels.row_pages import column, pages

    for module in (column, pages):
        monkeypatch.setattr(module, "is_compiled", lambda _device: False)
    assert_same(*both(tmp_path / "rows", capacity=10, eviction="lfu"))


def test_uses_are_renumbered_when_they_run_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cold_rows, "MOST_TICKS", 9)
    assert_same(*both(tmp_path / "rows", steps=40))


def test_a_table_whose_rows_are_in_memory_loads_what_was_in_a_file(tmp_path: Path) -> None:
    hot, cold = both(tmp_path / "rows")
    again = table_of(None)
    again.load_state(cold.state())
    assert_same(hot, again)


def test_the_rows_used_last_are_in_memory_after_a_reload(tmp_path: Path) -> None:
    _, cold = both(tmp_path / "rows")
    train(cold, ids_of(3, 5, 7), 30)
    cold.load_state(cold.state())
    train(cold, ids_of(7, 3, 5), 31)
    assert cold.gauges()["hot"] == 3
    assert cold.gauges()["promotions"] - cold.gauges()["spills"] == -9
    before = cold.gauges()["promotions"]
    train(cold, ids_of(5, 7, 3), 32)
    assert cold.gauges()["promotions"] == before


def test_what_is_erased_is_nowhere_in_the_file(tmp_path: Path) -> None:
    _, cold = both(tmp_path / "rows")
    ids = torch.arange(12)
    cold.look_up(torch.cat([ids, ids[:3]]))  # of every row there is a copy in the file, of some an older one
    vectors = cold.pages.gather(cold.find(ids))
    held = (tmp_path / "rows").read_bytes()
    assert [vector.numpy().tobytes() in held for vector in vectors].count(True) >= 9
    slots = [4096 + row * 56 for row in cold.find(ids).tolist()]
    rows = cold.erase(ids)
    assert torch.equal(cold.pages.read(rows)[1], torch.full((12, WIDTH), 0.1))
    held = (tmp_path / "rows").read_bytes()
    assert all(held[slot : slot + 56] == bytes(56) for slot in slots)


def test_a_file_is_open_in_one_table_at_a_time(tmp_path: Path) -> None:
    table = table_of(tmp_path / "rows")
    with pytest.raises(CheckpointError, match="rows is in use by another table or process"):
        table_of(tmp_path / "rows")
    table.close()
    table = table_of(tmp_path / "rows")
    del table
    gc.collect()
    table_of(tmp_path / "rows").close()


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps])
def test_a_table_with_a_file_refuses_to_be_copied_and_stays(tmp_path: Path, copied: Callable[[Any], Any]) -> None:
    path = tmp_path / "rows.cold"
    table = table_of(path)
    train(table, torch.arange(6), 0)
    held = table.state()
    for whole in (table, table.pages):
        with pytest.raises(TypeError, match=f"the cold file {path} cannot be copied or pickled: one .* save its state"):
            copied(whole)
    module = CollisionlessEmbedding(TableConfig(width=2, hot_rows=3, cold_file=str(tmp_path / "others.cold")))
    if copied is not copy.copy:  # a shallow copy of a module shares its table
        with pytest.raises(TypeError, match=r"others\.cold cannot be copied or pickled"):
            copied(module)
    assert all(torch.equal(value, held[name]) for name, value in table.state().items())
    in_memory = table_of(None)
    in_memory.load_state(held)
    assert_same(in_memory, copy.deepcopy(in_memory))


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


def test_a_file_that_was_cut_short_is_named_where_its_memory_would_end_the_process(tmp_path: Path) -> None:
    hot, cold = both(tmp_path / "rows")
    content = (tmp_path / "rows").read_bytes()
    os.truncate(tmp_path / "rows", 4096)
    message = f"has 4,096 bytes; wanted {len(content):,}: something cut it short"
    with pytest.raises(StorageError, match=message):
        cold.pages.gather(torch.arange(12))
    with pytest.raises(StorageError, match=message):
        train(cold, ids_of(*range(12)), 30)
    (tmp_path / "rows").write_bytes(content)
    train(hot, ids_of(3, 5), 30)
    train(cold, ids_of(3, 5), 30)
    assert_same(hot, cold)


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


def limited(size: int, run: Callable[[], object]) -> None:
    """Call with files of at most so many bytes, as on a disk that is full there."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("eviction", ["none", "lru"])
def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path, eviction: str) -> None:
    hot, cold = both(tmp_path / "rows", most=14, capacity=40, eviction=eviction)
    before = cold.state()

    def look_up() -> None:
        message = r"rows cannot grow from 4,992 to 5,440 bytes: File too large; nothing was lost: make room"
        with pytest.raises(StorageError, match=message):
            cold.look_up(torch.arange(20))

    for _ in range(2):
        limited(5000, look_up)
        after = cold.state()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert cold.gauges()["file_bytes"] == 4992
    assert torch.equal(train(hot, torch.arange(20), 30), train(cold, torch.arange(20), 30))
    assert_same(hot, cold)


def test_a_full_disk_at_a_reload_changes_nothing(tmp_path: Path) -> None:
    larger, _ = both(tmp_path / "others", most=30, steps=40)
    hot, cold = both(tmp_path / "rows")

    def load() -> None:
        with pytest.raises(StorageError, match="rows cannot grow"):
            cold.load_state(larger.state())

    limited(5000, load)
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hot_rows": 3}, "hot_rows=3 and cold_file=None; set both, or neither"),
        ({"cold_file": "rows"}, "hot_rows=None and cold_file=rows; set both, or neither"),
        ({"hot_rows": 0, "cold_file": "rows"}, "hot_rows=0; wanted at least 1, or null"),
    ],
)
def test_what_is_no_configuration_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableConfig(width=4, **settings)


def test_a_table_with_a_file_is_on_the_cpu(tmp_path: Path) -> None:
    config = TableConfig(width=4, hot_rows=3, cold_file=str(tmp_path / "rows"))
    with pytest.raises(ValueError, match="a table with hot_rows=3 is on meta; wanted cpu"):
        EmbeddingTable(config, device="meta")


def test_only_a_table_with_a_file_is_closed_or_resumed() -> None:
    with pytest.raises(ValueError, match="no cold file to close; its config has cold_file=None"):
        table_of(None).close("1")
    with pytest.raises(ValueError, match="no cold file to resume from"):
        table_of(None).resume({}, "1")

"""A log of a table that is larger than memory: part by part it is what it is at once, and takes little."""

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys.errors import DeltaError, GapError, StorageError
from recsys.models.delta import Delta, DeltaLog, ServingModel, Version, deltas_since, read_log
from recsys.models.delta.delta import file_name
from recsys.models.delta.rows import MEMORY_BYTES
from recsys.models.embedding_table import EmbeddingTable, RowOptimizer, TableConfig
from tests.full_disk import most_bytes_of_a_file
from tests.models.tables import assert_same

WIDTH = 4
ROWS = 200


def table_of(**settings: Any) -> EmbeddingTable:
    config = {"width": WIDTH, "optimizer": RowOptimizer("adam"), "capacity": ROWS, "eviction": "lfu", **settings}
    table = EmbeddingTable(TableConfig(**config), page_rows=8)
    table.clock.set(0)
    return table


def train(table: EmbeddingTable, first: int, count: int) -> None:
    ids = torch.arange(first, first + count)
    table.update(table.look_up(ids), torch.arange(count * WIDTH, dtype=torch.float32).view(count, WIDTH).cos(), 0.1)
    table.advance()


def live(table: EmbeddingTable, log: DeltaLog) -> None:
    """A base, deltas of all kinds, a cut during which the table trains on, a compaction, and a delta after it."""
    train(table, 0, 150)
    log.start({"t": table}, {"w": torch.ones(3)}, {})
    train(table, 100, 150)  # evicts
    table.erase(torch.arange(120, 140))
    log.append({"w": torch.ones(3)}, {"random": torch.arange(5)}, {"t": {130: "gone", 200: "here"}})
    train(table, 90, 60)
    cut = log.cut({"w": torch.zeros(3)}, {})
    number = 0
    while not cut.copy(17):
        train(table, 85 + 3 * number, 60)  # rows that are copied, and rows that are not
        number += 1
    log.write(cut.delta())
    log.compact()
    train(table, 5, 10)
    table.erase(torch.arange(8, 12))  # their rows stay free
    log.append({"w": torch.zeros(3)}, {})


@pytest.mark.parametrize("memory_bytes", [1, 5_000])
@pytest.mark.parametrize("is_cold", [False, True])
def test_files_written_part_by_part_are_those_written_at_once(memory_bytes: int, is_cold: bool, tmp_path: Path) -> None:
    cold: dict[str, Any] = {"hot_rows": 30, "cold_file": str(tmp_path / "cold")} if is_cold else {}
    names = ("whole", "parts")
    tables = [table_of(), table_of(**cold)]
    for name, table, most in zip(names, tables, (MEMORY_BYTES, memory_bytes), strict=True):
        live(table, DeltaLog(tmp_path / name, "b", published=tmp_path / f"{name}-out", memory_bytes=most))
    for suffix in ("", "-out"):
        whole, parts = (sorted((tmp_path / f"{name}{suffix}").glob("*.delta")) for name in names)
        assert [path.name for path in whole] == [path.name for path in parts]
        assert [path.name for path in whole] == [file_name(2, is_base=True), file_name(3, is_base=False)]
        for one, its_part in zip(whole, parts, strict=True):
            assert one.read_bytes() == its_part.read_bytes(), one
    cold = {"hot_rows": 30, "cold_file": str(tmp_path / "again")} if is_cold else {}
    restored = table_of(**cold)
    log = DeltaLog(tmp_path / "parts", "b", memory_bytes=memory_bytes)
    log.restore({"t": restored})
    assert_same(restored, tables[0])
    for table in (restored, tables[0]):
        train(table, 40, 120)
    assert_same(restored, tables[0])
    log.append({}, {})
    other = table_of()
    DeltaLog(tmp_path / "parts", "b").restore({"t": other})
    assert_same(other, restored)


def test_a_cut_of_many_rows_lies_in_a_file_and_servers_take_it(tmp_path: Path) -> None:
    table, log = table_of(), DeltaLog(tmp_path / "log", "b", published=tmp_path / "out", memory_bytes=1)
    train(table, 0, 50)
    log.start({"t": table}, {}, {})
    train(table, 20, 50)
    delta = log.cut({}, {}).delta()
    held = table.state()["vectors"].clone()
    train(table, 0, 100)
    assert delta.tables["t"].vectors.shape == (0, WIDTH)
    assert sorted(delta.stored) == [f"tables/0/{name}" for name in ("columns/counts", "columns/states", "vectors")]
    loaded = delta.loaded()
    assert not loaded.stored
    assert loaded.tables["t"].vectors.shape == (50, WIDTH)
    assert loaded.num_bytes == delta.num_bytes
    log.write(delta)
    served, other = ServingModel("b"), ServingModel("b")
    for found in deltas_since(tmp_path / "out", None):
        served.apply(found)
    for name in (file_name(0, is_base=True), file_name(1, is_base=False)):
        other.apply(Delta.read(tmp_path / "out" / name, part_bytes=1))
    ids = torch.arange(70)
    for model in (served, other):
        assert torch.equal(model.version().tables["t"].vectors(ids), held[:70])


def test_a_log_keeps_no_copies_after_they_are_written(tmp_path: Path) -> None:
    table, log = table_of(), DeltaLog(tmp_path, "b")
    train(table, 0, 50)

    def copies() -> int:
        gc.collect()
        return sum(type(one) is Tensor and tuple(one.shape) == (50, WIDTH) for one in gc.get_objects())

    log.start({"t": table}, {}, {})
    assert copies() == 0
    train(table, 0, 50)
    cut = log.cut({}, {})
    assert cut.copy(1000)
    log.write(cut.delta())
    del cut
    assert copies() == 0


def test_a_full_disk_drops_a_large_delta_and_the_next_is_a_base(tmp_path: Path) -> None:
    table, log = table_of(), DeltaLog(tmp_path, "b", memory_bytes=1)
    train(table, 0, 50)
    with most_bytes_of_a_file(3_000), pytest.raises(StorageError, match="the delta is dropped; free some disk space"):
        log.start({"t": table}, {}, {})
    assert not list(tmp_path.glob("*.delta"))
    assert not list(tmp_path.glob(".*.tmp"))
    train(table, 20, 50)
    assert log.append({}, {}) == Version(1, 1)
    train(table, 10, 50)
    with most_bytes_of_a_file(3_000), pytest.raises(StorageError):
        log.append({}, {})
    train(table, 30, 10)
    assert log.append({}, {}) == Version(1, 3)
    assert Delta.read(tmp_path / file_name(3, is_base=True)).since is None
    other = table_of()
    DeltaLog(tmp_path, "b").restore({"t": other})
    assert_same(table, other)


def test_a_disk_without_room_for_the_copies_is_told_at_the_cut_and_nothing_moves(tmp_path: Path) -> None:
    table, log = table_of(), DeltaLog(tmp_path, "b", memory_bytes=1)
    log.start({"t": table}, {}, {})
    train(table, 0, 50)
    before = table.state()
    with most_bytes_of_a_file(1_000), pytest.raises(StorageError, match="nothing was cut; free some disk space"):
        log.cut({}, {})
    assert all(torch.equal(before[name], value) for name, value in table.state().items())
    log.write(log.cut({}, {}).delta())
    assert log.version == Version(1, 1)
    other = table_of()
    DeltaLog(tmp_path, "b").restore({"t": other})
    assert_same(table, other)


def test_a_full_disk_at_a_compaction_leaves_the_log(tmp_path: Path) -> None:
    table, log = table_of(), DeltaLog(tmp_path, "b", memory_bytes=1)
    log.start({"t": table}, {}, {})
    train(table, 0, 50)
    log.append({}, {})
    names = sorted(path.name for path in tmp_path.iterdir())
    with most_bytes_of_a_file(3_000), pytest.raises(StorageError, match="the log stays as it was"):
        log.compact()
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    log.compact()
    other = table_of()
    DeltaLog(tmp_path, "b").restore({"t": other})
    assert_same(table, other)


def test_a_file_that_changes_after_it_was_checked_is_refused(tmp_path: Path) -> None:
    table, log = table_of(), DeltaLog(tmp_path, "b", memory_bytes=1)
    log.start({"t": table}, {}, {})
    train(table, 0, 50)
    log.append({}, {})
    path = tmp_path / file_name(1, is_base=False)
    content = path.read_bytes()
    delta, folded = Delta.read(path, part_bytes=1), read_log(tmp_path, memory_bytes=1)
    damaged = bytearray(content)
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DeltaError, match="its bytes are no longer those that were checked"):
        delta.loaded()
    with pytest.raises(DeltaError, match="its bytes are no longer those that were checked"):
        folded.tables["t"].state(table)
    path.write_bytes(content[:-8])
    with pytest.raises(DeltaError, match="its bytes are no longer those that were checked"):
        delta.loaded()
    path.unlink()
    with pytest.raises(GapError, match="was removed meanwhile, by a compaction; ask again"):
        folded.tables["t"].state(table)
    path.write_bytes(content)
    state = folded.tables["t"].state(table)
    assert all(torch.equal(state[name], value) for name, value in table.state().items())


@pytest.mark.parametrize("is_cold", [False, True])
def test_a_table_whose_blocks_end_amid_is_empty(is_cold: bool, tmp_path: Path) -> None:
    cold: dict[str, Any] = {"hot_rows": 9, "cold_file": str(tmp_path / "cold")} if is_cold else {}
    table, other = table_of(), table_of(**cold)
    train(table, 0, 50)
    train(other, 70, 20)
    state = table.state()
    outline = {
        name: torch.empty(value.shape, dtype=value.dtype, device="meta") if name in ("vectors", "states") else value
        for name, value in state.items()
    }

    def blocks(last: int) -> Iterator[tuple[int, dict[str, Tensor]]]:
        for start in range(0, last, 7):
            yield start, {name: state[name][start : start + 7] for name in ("vectors", "states")}
        if last < 50:
            raise DeltaError("the disk failed")

    with pytest.raises(DeltaError, match="the disk failed"):
        other.load_state(outline, blocks(20))
    assert len(other) == 0
    assert other.find(torch.arange(100)).max() == -1
    train(other, 0, 20)
    for some, message in (
        (list(blocks(50))[:-1], "the blocks hold 49 rows; wanted 50"),
        ([], "the blocks hold 0 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            other.load_state(outline, some)
        assert len(other) == 0
    with pytest.raises(ValueError, match="a block of rows begins at 14; wanted one from 7 on"):
        other.load_state(outline, [block for block in blocks(50) if block[0] != 7])
    other.load_state(outline, blocks(50))
    assert_same(table, other)


LIMIT_MB = 64


@pytest.mark.skipif(sys.platform != "linux", reason="the highest memory of a process is read as Linux tells it")
def test_a_state_of_256_mb_is_written_and_read_in_64_mb(tmp_path: Path) -> None:
    sizes = ["--rows", "84000", "--width", "256", "--hot", "2000"]  # 84,000 rows of 3,076 bytes
    for part, works in (("written", {"base", "cut"}), ("read", {"restore", "compaction"})):
        line = [sys.executable, "-m", "benchmarks.table_memory", "--part", part, "--folder", str(tmp_path), *sizes]
        done = subprocess.run(line, check=True, capture_output=True, text=True, timeout=300)
        found = json.loads(done.stdout)
        assert found.keys() == works
        for work, figures in found.items():
            assert figures["peak_mb"] < LIMIT_MB, (work, figures)

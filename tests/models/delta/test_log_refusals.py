"""What a trainer's log refuses, and what it outlives: other trainers, damage, gaps, failed writes, misfits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recsys.errors import DeltaError, GapError, StaleError
from recsys.models.delta import Delta, DeltaLog, Version, read_log
from recsys.models.delta.delta import file_name
from recsys.models.delta.log import EPOCH_FILE
from recsys.models.embedding_table import (
    CollisionlessEmbedding,
    EmbeddingTable,
    RowOptimizer,
    TableConfig,
)
from tests.models.delta.small_tables import WIDTH, table_of, train
from tests.models.tables import assert_same


def logged(folder: Path, deltas: int) -> EmbeddingTable:
    table, log = table_of(), DeltaLog(folder, "b")
    log.start({"t": table}, {}, {})
    for number in range(deltas):
        train(table, [number, number + 1])
        log.append({}, {"number": number})
    return table


def test_an_older_trainer_is_fenced_off(tmp_path: Path) -> None:
    old, log = table_of(), DeltaLog(tmp_path / "log", "b", published=tmp_path / "out")
    log.start({"t": old}, {}, {})
    new = table_of()
    DeltaLog(tmp_path / "log", "b", published=tmp_path / "out").restore({"t": new})
    train(old, [1])
    with pytest.raises(StaleError, match="a trainer of epoch 2 took over, this is one of epoch 1; stop it"):
        log.append({}, {})
    assert read_log(tmp_path / "log").version == Version(1, 0)
    with pytest.raises(StaleError):
        log.compact()
    assert not list((tmp_path / "log").glob(".*.tmp"))


def test_a_restore_that_is_refused_leaves_the_running_trainer_alone(tmp_path: Path) -> None:
    table, log = table_of(), DeltaLog(tmp_path, "b")
    log.start({"t": table}, {}, {})
    with pytest.raises(DeltaError, match="of bundle b; wanted c"):
        DeltaLog(tmp_path, "c").restore({"t": table_of()})
    with pytest.raises(DeltaError, match=r"has tables \['t'\]; wanted \['u'\]"):
        DeltaLog(tmp_path, "b").restore({"u": table_of()})
    with pytest.raises(DeltaError, match="this table's are"):
        DeltaLog(tmp_path, "b").restore({"t": table_of(optimizer=RowOptimizer("sgd"))})
    assert log.append({}, {}) == Version(1, 1)


def test_a_torn_last_file_is_passed_over_with_a_warning_and_written_anew(tmp_path: Path) -> None:
    logged(tmp_path, 3)
    last = tmp_path / file_name(3, is_base=False)
    last.write_bytes(last.read_bytes()[:-7])
    table, log = table_of(), DeltaLog(tmp_path, "b")
    with pytest.warns(RuntimeWarning, match="torn: .* it is the last one, and passed over: .*sequence 2"):
        restored = log.restore({"t": table})
    assert (restored.version, restored.extra) == (Version(1, 2), {"number": 1})
    assert not last.exists()
    assert log.append({}, {}) == Version(2, 3)
    assert read_log(tmp_path).version == Version(2, 3)


def test_a_damaged_file_in_the_middle_is_refused_by_name(tmp_path: Path) -> None:
    logged(tmp_path, 3)
    (tmp_path / file_name(2, is_base=False)).write_bytes(b"")
    with pytest.raises(DeltaError, match="delta-000000000002.delta: torn or damaged at its first line"):
        read_log(tmp_path)


def test_a_gap_is_refused_and_names_both_sides(tmp_path: Path) -> None:
    logged(tmp_path, 4)
    (tmp_path / file_name(2, is_base=False)).unlink()
    message = r"delta-0+3.delta: follows \(epoch 1, sequence 2\), but the last before it is \(epoch 1, sequence 1\)"
    with pytest.raises(GapError, match=message):
        read_log(tmp_path)


def test_a_failed_write_waits_and_comes_first(tmp_path: Path) -> None:
    table, log = table_of(), DeltaLog(tmp_path, "b")
    log.start({"t": table}, {}, {})
    train(table, [1])
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    with pytest.raises(ValueError, match="cannot be written"):
        log.append({}, {})
    moved.rename(tmp_path)
    train(table, [2])
    assert log.append({}, {}) == Version(1, 2)
    other = table_of()
    other.load_state(read_log(tmp_path).tables["t"].state(other))
    assert_same(table, other)


def test_misuse_is_refused_by_name(tmp_path: Path) -> None:
    log, table = DeltaLog(tmp_path, "b"), table_of()
    with pytest.raises(DeltaError, match="start the log, or restore from it, before the first delta"):
        log.append({}, {})
    with pytest.raises(DeltaError, match="no base here"):
        log.restore({})
    log.start({"t": table}, {}, {})
    with pytest.raises(DeltaError, match="holds deltas; restore from them"):
        DeltaLog(tmp_path, "b").start({"t": table}, {}, {})
    train(table, [1])
    cut = log.cut({}, {})
    with pytest.raises(DeltaError, match="rows of 't' are still being copied for another cut"):
        log.cut({}, {})
    cut.copy(10)
    (tmp_path / EPOCH_FILE).write_text(json.dumps([1]))
    with pytest.raises(DeltaError, match="epoch.json: damaged"):
        log.write(cut.delta())


@pytest.mark.parametrize("memory_bytes", [0, -5, 1.5, float("nan"), "64MB", None, True])
def test_memory_that_is_no_number_of_bytes_is_refused(memory_bytes: Any, tmp_path: Path) -> None:
    with pytest.raises(DeltaError, match="memory_bytes=.*; wanted a whole number of bytes, at least 1"):
        DeltaLog(tmp_path, "b", memory_bytes=memory_bytes)


UNWRITABLE: list[tuple[dict[str, Any], str]] = [
    ({"extra": {"x": object()}}, r"extra\['x'\]: .*not JSON serializable; wanted a tensor or a JSON value"),
    ({"extra": {"x": {"a": 1, 2: 3}}}, r"extra\['x'\]: "),
    ({"extra": {"x": [torch.zeros(1)]}}, r"extra\['x'\]: "),
    ({"extra": {"x": {1: 2}}}, r"extra\['x'\] would be read otherwise than it was written"),
    ({"extra": {"x": [{"y": (1, 2)}]}}, r"extra\['x'\] would be read otherwise than it was written"),
    ({"extra": {7: "seven"}}, r"extra\[7\]: wanted a name that is a text"),
    ({"extra": {"x": torch.zeros(1, dtype=torch.complex64)}}, "'extra/x' is torch.complex64; wanted one of"),
    ({"extra": {"x": torch.eye(2).to_sparse()}}, "'extra/x' is torch.sparse_coo; wanted a dense tensor"),
    ({"dense": {"w": torch.zeros(1, dtype=torch.complex64)}}, "'dense/w' is torch.complex64; wanted one of"),
    ({"dense": {"w": 1.0}}, r"dense\['w'\] is float; wanted a tensor"),
    ({"raw_ids": {"t": {3: b"3"}}}, r"raw_ids\['t'\]\[3\] is b'3'; wanted a text"),
    ({"raw_ids": {"t": {True: "3"}}}, r"raw_ids\['t'\]\[True\]"),
    ({"raw_ids": {"u": {3: "3"}}}, "raw_ids of 'u', which is unknown; wanted t"),
]


@pytest.mark.parametrize(("given", "message"), UNWRITABLE)
def test_what_no_file_holds_is_refused_before_anything_moves(given: Any, message: str, tmp_path: Path) -> None:
    table, weights, log = table_of(), {"w": torch.zeros(1)}, DeltaLog(tmp_path, "b")
    if "raw_ids" not in given:
        with pytest.raises(DeltaError, match=message):
            log.start({"t": table}, **{"dense": weights, "extra": {}, **given})
        assert not list(tmp_path.iterdir())
    log.start({"t": table}, weights, {})
    train(table, [1, 2])
    table.erase(torch.tensor([2]))
    weights["w"] += 1
    with pytest.raises(DeltaError, match=message):
        log.append(**{"dense": weights, "extra": {}, **given})
    assert log.append(weights, {"journal": {"a": 3}}) == Version(1, 1)
    delta = Delta.read(tmp_path / file_name(1, is_base=False))
    assert delta.tables["t"].ids.tolist() == [1]
    assert delta.dense["w"].tolist() == [1]
    other = table_of()
    assert DeltaLog(tmp_path, "b").restore({"t": other}).extra == {"journal": {"a": 3}}
    assert_same(table, other)


def test_a_cut_that_is_written_out_of_turn_is_refused_and_not_kept(tmp_path: Path) -> None:
    log = DeltaLog(tmp_path, "b")
    log.start({}, {}, {})
    one, two = (log.cut({}, {"number": number}).delta() for number in (1, 2))
    message = r"\(epoch 1, sequence 2\) follows \(epoch 1, sequence 1\), but \(epoch 1, sequence 0\) was written last"
    with pytest.raises(DeltaError, match=message):
        log.write(two)
    log.write(one)
    log.write(two)
    assert (log.version, read_log(tmp_path).extra) == (Version(1, 2), {"number": 2})


def test_gradients_that_wait_for_a_step_are_refused_by_name(tmp_path: Path) -> None:
    module, log = CollisionlessEmbedding(TableConfig(width=WIDTH)), DeltaLog(tmp_path, "b")
    message = "'t' has gradients that no step applied, and no delta holds them; call its step, or drop_gradients"

    def look_up() -> None:
        module(torch.arange(3)).sum().backward()

    look_up()
    with pytest.raises(DeltaError, match=message):
        log.start({"t": module}, {}, {})
    module.step(0.1)
    log.start({"t": module}, {}, {})
    look_up()
    before = module.table.state()
    for refused in (log.append, log.cut):
        with pytest.raises(DeltaError, match=message):
            refused({}, {})
    module.step(0.1)
    assert not torch.equal(module.table.state()["vectors"], before["vectors"])
    assert log.append({}, {}) == Version(1, 1)
    look_up()
    module.drop_gradients()
    assert log.append({}, {}) == Version(1, 2)
    other = CollisionlessEmbedding(TableConfig(width=WIDTH))
    DeltaLog(tmp_path, "b").restore({"t": other})
    assert_same(module.table, other.table)


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_lost_cut_is_abandoned_and_nothing_is_lost(is_copied: bool, tmp_path: Path) -> None:
    table, log = table_of(), DeltaLog(tmp_path, "b")
    log.start({"t": table}, {}, {})
    train(table, [1, 2, 3])
    log.append({}, {})
    train(table, [2, 4])
    cut = log.cut({}, {})
    if is_copied:
        cut.delta()
    del cut
    train(table, [5])
    with pytest.raises(DeltaError, match="or abandon"):
        log.append({}, {})
    log.abandon()
    train(table, [6, 1])
    log.append({}, {})
    train(table, [7])
    log.append({}, {})
    restored = table_of()
    DeltaLog(tmp_path, "b").restore({"t": restored})
    assert_same(table, restored)


LOGGED: dict[str, Any] = {"width": WIDTH, "capacity": 6, "optimizer": RowOptimizer("adagrad")}
MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"width": 3}, "this table's is"),
    ({"width": 7}, "this table's is"),
    ({"optimizer": RowOptimizer("sgd")}, "this table's are by sgd"),
    ({"optimizer": RowOptimizer("adam")}, "this table's are by adam"),
    ({"capacity": 2}, "there are 3 ids; wanted at most"),
    ({"eviction": "lfu"}, "has no 'counts'"),
]


@pytest.mark.parametrize(("config", "message"), MISFITS)
def test_a_table_that_does_not_fit_is_refused_as_a_delta_error(config: Any, message: str, tmp_path: Path) -> None:
    table, log = table_of(**LOGGED), DeltaLog(tmp_path, "b")
    log.start({"t": table}, {}, {})
    train(table, [1, 2, 3, 4])
    table.erase(torch.tensor([2]))
    log.append({}, {})
    other = table_of(**{**LOGGED, **config})
    train(other, [8])
    before = other.state()
    with pytest.raises(DeltaError, match=f"the log's 't' does not fit: .*{message}"):
        DeltaLog(tmp_path, "b").restore({"t": other})
    assert all(torch.equal(before[name], value) for name, value in other.state().items())
    assert log.append({}, {}) == Version(1, 2)


@pytest.mark.parametrize(("config", "message"), MISFITS)
def test_a_restore_that_one_table_refuses_changes_none(config: Any, message: str, tmp_path: Path) -> None:
    log, logged = DeltaLog(tmp_path, "b"), {"a": table_of(**LOGGED), "b": table_of(**LOGGED)}
    log.start(logged, {}, {})
    for table in logged.values():
        train(table, [1, 2, 3])
    log.append({}, {})
    others = {"a": table_of(**LOGGED), "b": table_of(**{**LOGGED, **config})}
    train(others["a"], [8, 9])
    before = others["a"].state()
    with pytest.raises(DeltaError, match=f"the log's 'b' does not fit: .*{message}"):
        DeltaLog(tmp_path, "b").restore(others)
    assert all(torch.equal(before[name], value) for name, value in others["a"].state().items())
    assert log.append({}, {}) == Version(1, 2)


def test_a_restore_into_a_table_that_is_copied_for_a_cut_is_refused(tmp_path: Path) -> None:
    log, logged = DeltaLog(tmp_path, "b"), {"a": table_of(), "b": table_of()}
    log.start(logged, {}, {})
    for table in logged.values():
        train(table, [1, 2, 3])
    log.append({}, {})
    for table in logged.values():
        train(table, [4])
    cut, before = log.cut({}, {}), [table.state() for table in logged.values()]
    with pytest.raises(DeltaError, match="rows of 'a' are still being copied for a cut; finish it, or abandon it"):
        DeltaLog(tmp_path, "b").restore(logged)
    for state, table in zip(before, logged.values(), strict=True):
        assert all(torch.equal(state[name], value) for name, value in table.state().items())
    log.write(cut.delta())
    assert read_log(tmp_path).version == Version(1, 2)


def test_a_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    DeltaLog(tmp_path, "b").start({"t": table_of()}, {}, {})
    with pytest.raises(DeltaError, match="table 'user' is unknown; wanted t"):
        read_log(tmp_path).tables["user"]

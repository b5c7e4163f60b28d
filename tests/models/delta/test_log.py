"""The trainer's log: a table that is restored goes on bit for bit as one that never stopped."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from benchmarks.support.lossy_files import LossyFiles
from recsys.errors import DeltaError, GapError, StaleError
from recsys.models.delta import Delta, DeltaLog, Version, deltas_since, read_log
from recsys.models.delta.delta import file_name
from recsys.models.delta.log import EPOCH_FILE
from recsys.models.delta.rows import MEMORY_BYTES
from recsys.models.embedding_table import (
    AdmissionConfig,
    CollisionlessEmbedding,
    EmbeddingTable,
    RowOptimizer,
    TableConfig,
)
from recsys.models.embedding_table import clock as clocks
from recsys.models.embedding_table import table as tables

WIDTH = 4


def table_of(**settings: Any) -> EmbeddingTable:
    table = EmbeddingTable(TableConfig(**{"width": WIDTH, "optimizer": RowOptimizer("adam"), **settings}), page_rows=8)
    table.clock.set(0)
    return table


def train(table: EmbeddingTable, ids: list[int], second: int | None = None) -> None:
    if second is not None:
        table.clock.set(second)
    rows = table.look_up(torch.tensor(ids, dtype=torch.int64))
    gradients = torch.arange(len(ids) * table.config.width, dtype=torch.float32).view(-1, table.config.width).cos()
    table.update(rows, gradients, lr=0.1)
    table.advance()


def assert_same(one: EmbeddingTable, other: EmbeddingTable) -> None:
    ours, theirs = one.state(), other.state()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert one.counts == other.counts


def stream(steps: int, most: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, most, (6,), generator=generator).tolist() for _ in range(steps)]


@pytest.mark.parametrize("eviction", ["none", "lru", "lfu", "ttl"])
@pytest.mark.parametrize("mode", ["all", "threshold", "probability"])
def test_a_restored_table_goes_on_bit_for_bit(eviction: Any, mode: Any, tmp_path: Path) -> None:
    admission = AdmissionConfig(mode=mode, threshold=1 if mode == "all" else 3, capacity=12, splits=3)
    config: dict[str, Any] = {"capacity": 8, "eviction": eviction, "ttl_s": 5, "admission": admission}
    table, log = table_of(**config), DeltaLog(tmp_path, "b")
    for number, ids in enumerate(stream(60, 30)):
        if number == 3:
            log.start({"t": table}, {}, {})
        if number > 3 and number % 4 == 0:
            log.append({}, {"step": number})
        if number == 30:
            log.compact()
        if number % 12 == 0 and number > 3:
            other, log = table_of(**config), DeltaLog(tmp_path, "b")
            restored = log.restore({"t": other})
            assert restored.extra == {"step": number}
            assert_same(table, other)
            train(table, ids, number)  # they part, and must stay the same
            train(other, ids, number)
            assert_same(table, other)
            table = other
        else:
            train(table, ids, number)
        if number % 7 == 0:
            table.expire()
        if number % 9 == 0:
            table.erase(torch.tensor(ids[:2]))
    assert log.version == Version(5, 14)


def test_rows_are_of_the_cut_however_the_table_trains_on(tmp_path: Path) -> None:
    config: dict[str, Any] = {"capacity": 40, "eviction": "lfu", "ttl_s": 9}
    table, log = table_of(**config), DeltaLog(tmp_path, "b")
    log.start({"t": table}, {}, {})
    for round_ in range(6):
        for number, ids in enumerate(stream(20, 70, seed=round_)):
            train(table, ids, 20 * round_ + number)
        cut = log.cut({}, {})
        held = {name: value.clone() for name, value in table.state().items()}
        for number, ids in enumerate(stream(10, 70, seed=100 + round_)):
            train(table, ids)
            table.erase(torch.tensor(ids[:1]))
            if number % 2:
                cut.copy(3)
        log.write(cut.delta())
        other = table_of(**config)
        folded = read_log(tmp_path).tables["t"].state(other)
        assert folded.keys() == held.keys()
        for name in held:
            assert torch.equal(folded[name], held[name]), (round_, name)


def test_a_module_brings_its_id_dropout_back(tmp_path: Path) -> None:
    def build() -> CollisionlessEmbedding:
        return CollisionlessEmbedding(TableConfig(width=WIDTH, unknown="learned", id_dropout=0.4), page_rows=8)

    def step(embedding: CollisionlessEmbedding) -> torch.Tensor:
        embedding.clock(0)
        vectors = embedding(torch.arange(12))
        vectors.square().sum().backward()
        embedding.step(0.1)
        return vectors.detach()

    one, log = build(), DeltaLog(tmp_path, "b")
    log.start({"t": one}, dict(one.named_parameters()), {})
    for _ in range(3):
        step(one)
    with torch.no_grad():
        one.unknown.add_(1.0)  # type: ignore[union-attr]  # there is one: unknown=learned
    log.append(dict(one.named_parameters()), {"random": torch.get_rng_state()})
    other, log = build(), DeltaLog(tmp_path, "b")
    restored = log.restore({"t": other})
    other.load_state_dict({**other.state_dict(), **restored.dense})
    assert torch.equal(restored.extra["random"], torch.get_rng_state())
    for _ in range(3):
        assert torch.equal(step(one), step(other))


def test_only_parameters_that_moved_are_written(tmp_path: Path) -> None:
    log, weights = DeltaLog(tmp_path, "b"), {"a": torch.zeros(2), "b": torch.ones(3, dtype=torch.bfloat16)}
    log.start({}, weights, {})
    weights["a"] += 1
    log.append(weights, {})
    assert list(Delta.read(tmp_path / file_name(1, is_base=False)).dense) == ["a"]
    restored = DeltaLog(tmp_path, "b").restore({})
    assert restored.dense["a"].tolist() == [1, 1]
    assert torch.equal(restored.dense["b"], weights["b"])


def test_a_delta_costs_what_changed(tmp_path: Path) -> None:
    table, log = table_of(ttl_s=10**6), DeltaLog(tmp_path, "b")
    log.start({"t": table}, {}, {})
    train(table, list(range(5000)), 1)
    table.erase(torch.arange(0, 5000, 2))
    for second in range(2, 200):
        train(table, [1], second)
    log.append({}, {})
    train(table, [1, 3], 200)
    cut = log.cut({}, {}).delta()
    state = cut.tables["t"].state
    assert state is not None
    assert cut.tables["t"].ids.tolist() == [1, 3]
    assert state.parts["free"].kept == 2500
    assert cut.num_bytes < 1000
    assert len(table.state()["deleted.ids"]) == 0  # they were told, and are not kept


def test_a_base_is_cut_when_ticks_are_renumbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (clocks, tables):
        monkeypatch.setattr(module, "MOST_TICKS", 20)
    table, log = table_of(capacity=6, eviction="lru"), DeltaLog(tmp_path, "b")
    log.start({"t": table}, {}, {})
    for number, ids in enumerate(stream(50, 9)):
        train(table, ids, number)
        if number % 7 == 0:
            log.append({}, {})
            other = table_of(capacity=6, eviction="lru")
            other.load_state(read_log(tmp_path).tables["t"].state(other))
            assert_same(table, other)
    assert table.times_renumbered > 1


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


def logged(folder: Path, deltas: int) -> EmbeddingTable:
    table, log = table_of(), DeltaLog(folder, "b")
    log.start({"t": table}, {}, {})
    for number in range(deltas):
        train(table, [number, number + 1])
        log.append({}, {"number": number})
    return table


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


def test_compaction_leaves_one_base_and_what_came_later(tmp_path: Path) -> None:
    table, log = table_of(), DeltaLog(tmp_path / "log", "b", published=tmp_path / "out")
    log.start({"t": table}, {}, {})
    for number in range(5):
        train(table, [number])
        log.append({}, {}, {"t": {number: f"item {number}"}})
        if number == 3:
            assert log.compact() == Version(1, 4)
    for folder in ("log", "out"):
        names = sorted(path.name for path in (tmp_path / folder).glob("*.delta"))
        assert names == [file_name(4, is_base=True), file_name(5, is_base=False)]
    base = Delta.read(tmp_path / "out" / file_name(4, is_base=True))
    assert base.tables["t"].raw_ids == {number: f"item {number}" for number in range(4)}
    assert base.tables["t"].state is None
    other = table_of()
    DeltaLog(tmp_path / "log", "b").restore({"t": other})
    assert_same(table, other)


def test_a_log_is_compacted_and_cuts_are_written_on_other_threads_while_a_table_trains(tmp_path: Path) -> None:
    table, log = table_of(capacity=500, eviction="lru"), DeltaLog(tmp_path / "log", "b", published=tmp_path / "out")
    log.start({"t": table}, {}, {})
    with ThreadPoolExecutor(1) as writer, ThreadPoolExecutor(1) as compactor:
        work = list[Future[Any]]()
        for number in range(40):
            for step in range(3):
                train(table, list(range(37 * number + step, 37 * number + step + 60)), number)
            cut = log.cut({}, {"number": number})
            train(table, list(range(30)))
            while not cut.copy(50):
                train(table, list(range(30)))
            work.append(writer.submit(log.write, cut.delta()))
            if number % 5 == 0:
                work.append(compactor.submit(log.compact))
        for one in work:
            one.result()
    log.append({}, {})
    other = table_of(capacity=500, eviction="lru")
    DeltaLog(tmp_path / "log", "b").restore({"t": other})
    assert_same(table, other)


def test_what_was_durable_and_not_yet_served_is_served_after_a_restore(tmp_path: Path) -> None:
    table, log = table_of(), DeltaLog(tmp_path / "log", "b", published=tmp_path / "out")
    log.start({"t": table}, {}, {})
    log.append({}, {"secret": 1})
    (tmp_path / "out" / file_name(1, is_base=False)).unlink()
    DeltaLog(tmp_path / "log", "b", published=tmp_path / "out").restore({"t": table_of()})
    assert Delta.read(tmp_path / "out" / file_name(1, is_base=False)).extra == {}


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


def test_extra_is_of_the_cut_however_its_values_change(tmp_path: Path) -> None:
    log, journal = DeltaLog(tmp_path, "b"), {"writer-1": 3}
    log.start({}, {}, {})
    cut = log.cut({}, {"journal": journal})
    journal["writer-1"] = 4
    log.write(cut.delta())
    assert read_log(tmp_path).extra == {"journal": {"writer-1": 3}}


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


def test_the_learned_unknown_vector_is_of_its_table_and_told_when_it_moves(tmp_path: Path) -> None:
    config, log = TableConfig(width=WIDTH, unknown="learned"), DeltaLog(tmp_path, "b")
    module = CollisionlessEmbedding(config)
    assert module.unknown is not None
    log.start({"t": module}, {}, {})
    with torch.no_grad():
        module.unknown.add_(2.0)
    cut = log.cut({}, {})
    with torch.no_grad():
        module.unknown.add_(1.0)
    log.write(cut.delta())
    log.append({}, {})
    log.append({}, {})
    deltas = [Delta.read(tmp_path / file_name(number, is_base=number == 0)) for number in range(4)]
    told = [delta.tables["t"].unknown for delta in deltas]
    assert [None if value is None else value.tolist() for value in told] == [[0.0] * 4, [2.0] * 4, [3.0] * 4, None]
    for compacted in (False, True):
        if compacted:
            log.compact()
        other, log = CollisionlessEmbedding(config), DeltaLog(tmp_path, "b")
        log.restore({"t": other})
        assert torch.equal(other.eval()(torch.tensor([99])), torch.full((1, WIDTH), 3.0))
        assert log.cut({}, {}).delta().tables["t"].unknown is None  # it did not move since
    with pytest.raises(DeltaError, match="the log's 't' has a learned unknown vector; wanted none"):
        DeltaLog(tmp_path, "b").restore({"t": CollisionlessEmbedding(TableConfig(width=WIDTH))})
    with pytest.raises(DeltaError, match="the log's 't' has a learned unknown vector; wanted none"):
        DeltaLog(tmp_path, "b").restore({"t": EmbeddingTable(config)})


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


def test_folders_may_be_texts(tmp_path: Path) -> None:
    folder, out = str(tmp_path / "log"), str(tmp_path / "out")
    table, log = table_of(), DeltaLog(folder, "b", published=out)
    log.start({"t": table}, {}, {})
    train(table, [1])
    log.append({}, {})
    assert read_log(folder).version == Version(1, 1)
    assert [delta.version for delta in deltas_since(out, None)] == [Version(1, 0), Version(1, 1)]
    assert [delta.version for delta in deltas_since(out, Version(1, 0))] == [Version(1, 1)]
    written = f"{out}/{file_name(1, is_base=False)}"
    Delta.read(written).write(f"{written}.copy")
    assert Path(f"{written}.copy").read_bytes() == Path(written).read_bytes()
    log.compact()
    DeltaLog(folder, "b", published=out).restore({"t": table_of()})


IDS = st.lists(st.integers(-3, 12), max_size=8)


class Logged(RuleBasedStateMachine):
    """A table beside one that stops and is restored at random."""

    @initialize(
        eviction=st.sampled_from(["none", "lru", "lfu", "ttl"]),
        capacity=st.integers(1, 9),
        memory_bytes=st.sampled_from([1, 2000, MEMORY_BYTES]),
    )
    def begin(self, eviction: Any, capacity: int, memory_bytes: int) -> None:
        admission = AdmissionConfig(mode="threshold", threshold=2, capacity=6, splits=2)
        self.config: dict[str, Any] = {"capacity": capacity, "eviction": eviction, "ttl_s": 4, "admission": admission}
        self.files = LossyFiles()
        self.table, self.second = table_of(**self.config), 0
        self.memory_bytes = memory_bytes
        self.log = DeltaLog(Path("log"), "b", files=self.files, memory_bytes=memory_bytes)
        self.log.start({"t": self.table}, {}, {})
        self.cut: Any = None

    @rule(ids=IDS, wait=st.integers(0, 3))
    def train(self, ids: list[int], wait: int) -> None:
        self.second += wait
        train(self.table, ids, self.second)

    @rule(ids=IDS)
    def erase(self, ids: list[int]) -> None:
        self.table.erase(torch.tensor(ids, dtype=torch.int64))

    @rule()
    def expire(self) -> None:
        self.table.expire()

    @precondition(lambda self: self.cut is None)
    @rule()
    def begin_cut(self) -> None:
        self.cut = self.log.cut({}, {})
        self.held = {name: value.clone() for name, value in self.table.state().items()}

    @precondition(lambda self: self.cut is not None)
    @rule(rows=st.integers(0, 3))
    def copy(self, rows: int) -> None:
        self.cut.copy(rows)

    @precondition(lambda self: self.cut is not None)
    @rule()
    def write(self) -> None:
        self.log.write(self.cut.delta())
        self.cut = None
        state = read_log(Path("log"), self.files, self.memory_bytes).tables["t"].state(self.table)
        assert state.keys() == self.held.keys()
        for name, value in self.held.items():
            assert torch.equal(state[name], value), name

    @precondition(lambda self: self.cut is None)
    @rule()
    def compact(self) -> None:
        self.log.compact()

    @precondition(lambda self: self.cut is None)
    @rule()
    def restore(self) -> None:
        self.log.append({}, {})
        other = table_of(**self.config)
        self.log = DeltaLog(Path("log"), "b", files=self.files, memory_bytes=self.memory_bytes)
        self.log.restore({"t": other})
        assert_same(self.table, other)
        self.table = other


TestLogged = Logged.TestCase
TestLogged.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)

"""The trainer's log: a table that is restored goes on bit for bit as one that never stopped."""

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from benchmarks.support.lossy_files import LossyFiles
from recsys.errors import DeltaError
from recsys.models.delta import Delta, DeltaLog, Version, deltas_since, read_log
from recsys.models.delta.delta import file_name
from recsys.models.delta.rows import MEMORY_BYTES
from recsys.models.embedding_table import (
    AdmissionConfig,
    CollisionlessEmbedding,
    EmbeddingTable,
    TableConfig,
)
from recsys.models.embedding_table import clock as clocks
from recsys.models.embedding_table import table as tables
from tests.models.delta.small_tables import WIDTH, stream, table_of, train
from tests.models.tables import assert_same


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


def test_extra_is_of_the_cut_however_its_values_change(tmp_path: Path) -> None:
    log, journal = DeltaLog(tmp_path, "b"), {"writer-1": 3}
    log.start({}, {}, {})
    cut = log.cut({}, {"journal": journal})
    journal["writer-1"] = 4
    log.write(cut.delta())
    assert read_log(tmp_path).extra == {"journal": {"writer-1": 3}}


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

"""Those who follow a table: each version is the trainer's table at that moment, for as long as somebody reads it."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from benchmarks.support.lossy_files import LossyFiles
from recsys.errors import DeltaError, GapError, StaleError
from recsys.models.delta import Delta, DeltaLog, ModelVersion, ServingModel, TableDelta, Version, deltas_since
from recsys.models.embedding_table import CollisionlessEmbedding, EmbeddingTable, RowOptimizer, TableConfig

WIDTH = 3
IDS = torch.arange(-4, 60)
LOG, OUT = Path("log"), Path("out")


def table_of(**config: Any) -> EmbeddingTable:
    table = EmbeddingTable(TableConfig(**{"width": WIDTH, "optimizer": RowOptimizer("sgd"), **config}), page_rows=8)
    table.clock.set(0)
    return table


def train(table: EmbeddingTable, ids: list[int]) -> None:
    rows = table.look_up(torch.tensor(ids, dtype=torch.int64))
    table.update(rows, torch.ones(len(ids), WIDTH), lr=0.5)
    table.advance()


def vectors_of(table: EmbeddingTable) -> dict[int, list[float]]:
    rows = table.live_rows()
    return dict(zip(table.ids_of(rows).tolist(), table.pages.gather(rows).tolist(), strict=True))


def seen(version: ModelVersion) -> dict[int, list[float]]:
    """By every way there is to read it."""
    table = version.tables["t"]
    ids = table.ids()
    found = table.find(IDS)
    assert len(table) == len(ids)
    assert sorted(ids.tolist()) == IDS[found >= 0].tolist()
    assert not table.vectors(IDS)[found < 0].any()
    assert torch.equal(table.vectors(IDS), table.of_rows(found))
    return dict(zip(ids.tolist(), table.vectors(ids).tolist(), strict=True))


class Followed(RuleBasedStateMachine):
    """A table that trains, and a model that follows, is rolled back, and is held on to."""

    @initialize(eviction=st.sampled_from(["none", "lru"]), capacity=st.integers(1, 12), retained=st.integers(1, 4))
    def begin(self, eviction: Any, capacity: int, retained: int) -> None:
        self.config: dict[str, Any] = {"capacity": capacity, "eviction": eviction, "ttl_s": 4}
        self.table, self.second = table_of(**self.config), 0
        self.files = LossyFiles()
        self.log = DeltaLog(LOG, "b", published=OUT, files=self.files)
        self.log.start({"t": self.table}, {"w": torch.zeros(1)}, {})
        self.truth = {Version(1, 0): vectors_of(self.table)}
        self.retained = retained
        self.model = ServingModel("b", retained=retained, page_rows=4)
        self.held: list[ModelVersion] = []
        self.follow()

    @rule(ids=st.lists(st.integers(-4, 59), max_size=8), wait=st.integers(0, 3))
    def train(self, ids: list[int], wait: int) -> None:
        self.second += wait
        self.table.clock.set(self.second)
        train(self.table, ids)

    @rule(ids=st.lists(st.integers(-4, 59), max_size=8))
    def erase(self, ids: list[int]) -> None:
        self.table.erase(torch.tensor(ids, dtype=torch.int64))

    @rule()
    def expire(self) -> None:
        self.table.expire()

    @rule(times=st.integers(1, 3), ids=st.lists(st.integers(-4, 59), max_size=4))
    def cut(self, times: int, ids: list[int]) -> None:
        for _ in range(times):
            train(self.table, ids)
            version = self.log.append({"w": torch.tensor([float(self.second)])}, {})
            self.truth[version] = vectors_of(self.table)

    @rule()
    def compact(self) -> None:
        self.log.compact()

    @rule()
    def restart_trainer(self) -> None:
        self.log.append({"w": torch.zeros(1)}, {})
        self.truth[self.log.version or Version(0, 0)] = vectors_of(self.table)
        self.table, self.log = table_of(**self.config), DeltaLog(LOG, "b", published=OUT, files=self.files)
        self.log.restore({"t": self.table})

    @rule()
    def follow(self) -> None:
        for delta in deltas_since(OUT, self.model.at, self.files):
            assert self.model.apply(delta)
            assert not self.model.apply(delta)
        assert self.model.at == self.log.version

    @rule()
    def hold(self) -> None:
        self.held.append(self.model.version())

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def let_go(self, data: Any) -> None:
        self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))

    @rule(data=st.data())
    def roll_back(self, data: Any) -> None:
        self.model.rollback(data.draw(st.sampled_from(self.model.retained)))

    @invariant()
    def every_version_is_the_trainers(self) -> None:
        assert len(self.model.retained) <= self.retained
        for version in [self.model.version(), *self.held]:
            assert seen(version) == self.truth[version.version]


TestFollowed = Followed.TestCase
TestFollowed.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)


def change(
    sequence: int, ids: list[int], deleted: tuple[int, ...] = (), *, epoch: int = 1, since: Version | None = None
) -> Delta:
    """Each id's vector is the id and the sequence."""
    vectors = torch.tensor([[float(id_), float(sequence)] for id_ in ids]).view(-1, 2)
    table = TableDelta(torch.tensor(ids, dtype=torch.int64), vectors, torch.tensor(deleted, dtype=torch.int64))
    before = Version(1, sequence - 1) if since is None else since
    return Delta("b", epoch, sequence, before if sequence else None, {"t": table}, {"w": torch.tensor(sequence)})


def model_at(sequence: int, **settings: Any) -> ServingModel:
    model = ServingModel("b", **settings)
    for number in range(sequence + 1):
        model.apply(change(number, [number, 100]))
    return model


def test_applying_again_changes_nothing() -> None:
    model = model_at(3)
    held = model.version()
    assert [model.apply(change(number, [77])) for number in (3, 2, 0)] == [False] * 3
    assert model.version() is held


def test_a_gap_is_refused_and_names_both_versions() -> None:
    model = model_at(3)
    held = model.version()
    message = (
        r"delta \(epoch 1, sequence 5\) follows \(epoch 1, sequence 4\), but this model is at \(epoch 1, sequence 3\)"
    )
    with pytest.raises(GapError, match=message):
        model.apply(change(5, [7]))
    assert model.version() is held
    with pytest.raises(GapError, match=r"follows \(epoch 1, sequence 0\), but there is no base"):
        ServingModel("b").apply(change(1, [7]))


def test_an_older_epoch_is_refused() -> None:
    model = model_at(3)
    assert model.apply(change(4, [4], epoch=2))
    with pytest.raises(StaleError, match=r"\(epoch 1, sequence 5\) is of an older epoch than \(epoch 2, sequence 4\)"):
        model.apply(change(5, [5]))
    with pytest.raises(StaleError):
        model.apply(change(4, [4]))


def test_a_trainer_that_went_on_from_an_earlier_version_is_told_apart() -> None:
    """Same numbers, but another past: only a rollback to where they part makes it fit."""
    model = model_at(3)
    forked = change(3, [33], epoch=2, since=Version(1, 2))
    with pytest.raises(GapError, match="roll back to where they part"):
        model.apply(forked)
    with pytest.raises(GapError):
        model.apply(change(4, [4], epoch=2, since=Version(2, 3)))
    model.rollback(Version(1, 2))
    assert model.apply(forked)
    assert model.version().tables["t"].find(torch.tensor([3, 33])).ge(0).tolist() == [False, True]


def test_another_bundle_or_shape_is_refused() -> None:
    model = model_at(1)
    one = change(2, [5])
    with pytest.raises(DeltaError, match="is of bundle c; wanted b"):
        model.apply(Delta("c", 1, 2, Version(1, 1), one.tables))
    with pytest.raises(DeltaError, match="table 'u' is unknown; wanted t"):
        model.apply(Delta("b", 1, 2, Version(1, 1), {"u": one.tables["t"]}))
    ids = torch.tensor([1, 2])
    for table, message in (
        (TableDelta(ids, torch.zeros(2, 5), ids[:0]), "have 5 numbers; wanted 2"),
        (TableDelta(ids, torch.zeros(1, 2), ids[:0]), r"wanted \(M,\) and \(M, width\)"),
        (TableDelta(ids, torch.zeros(2, 2), ids[:1]), "stands twice in one delta"),
        (TableDelta(ids, torch.zeros(2, 2), ids[:0], unknown=torch.zeros(3)), r"of the shape \(3,\); wanted \(2,\)"),
    ):
        with pytest.raises(DeltaError, match=message):
            model.apply(Delta("b", 1, 2, Version(1, 1), {"t": table}))
    assert model.at == Version(1, 1)
    assert model.apply(one)
    with pytest.raises(DeltaError, match="table 'user' is unknown; wanted t"):
        model.version().tables["user"]
    with pytest.raises(DeltaError, match="there is no version yet"):
        ServingModel("b").version()
    with pytest.raises(ValueError, match="page_rows=3; wanted a power of two"):
        ServingModel("b", page_rows=3)


IDS_1, NONE = torch.tensor([3]), torch.empty(0, dtype=torch.int64)
ONE = torch.ones(1, 2)
ODD: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
    ((IDS_1.int(), ONE, NONE), {}, "ids of 't' is of torch.int32 on cpu; wanted torch.int64"),
    (([3], ONE, NONE), {}, "ids of 't' is list; wanted a tensor of torch.int64"),
    ((IDS_1, ONE, torch.tensor([1]).int()), {}, "deleted of 't' is of torch.int32"),
    ((IDS_1, ONE, torch.tensor([[1]])), {}, r"'t' has deleted ids of the shape \(1, 1\); wanted \(K,\)"),
    ((IDS_1, ONE.double(), NONE), {}, "vectors of 't' is of torch.float64 on cpu; wanted torch.float32"),
    ((IDS_1, ONE.long(), NONE), {}, "vectors of 't' is of torch.int64"),
    ((IDS_1, ONE / 0, NONE), {}, "vectors of 't' has numbers that are NaN or infinite"),
    ((IDS_1, ONE * float("nan"), NONE), {}, "vectors of 't' has numbers that are NaN or infinite"),
    ((NONE, torch.ones(0, 9), NONE), {}, "vectors of 't' have 9 numbers; wanted 2"),
    ((IDS_1, ONE, NONE), {"unknown": torch.ones(2).double()}, "unknown of 't' is of torch.float64"),
    ((IDS_1, ONE, NONE), {"unknown": torch.ones(2) / 0}, "unknown of 't' has numbers that are NaN or infinite"),
]


@pytest.mark.parametrize(("parts", "more", "message"), ODD)
def test_a_delta_of_other_types_is_refused_and_changes_nothing(parts: Any, more: Any, message: str) -> None:
    model = model_at(1)
    held = model.version()
    with pytest.raises(DeltaError, match=message):
        model.apply(Delta("b", 1, 2, Version(1, 1), {"t": TableDelta(*parts, **more)}))
    assert model.version() is held
    assert model.apply(change(2, [5]))


@pytest.mark.parametrize(("epoch", "sequence"), [(1, 1.5), (1, "2"), (1.0, 2), (True, 2)])
def test_a_version_that_is_no_whole_number_is_refused(epoch: Any, sequence: Any) -> None:
    model = model_at(1)
    with pytest.raises(DeltaError, match="wanted whole numbers"):
        model.apply(Delta("b", epoch, sequence, Version(1, 1), change(2, [5]).tables))
    assert model.at == Version(1, 1)


def test_rollback_is_to_a_retained_version_and_brings_all_of_it_back() -> None:
    model = model_at(5, retained=3)
    assert model.retained == (Version(1, 3), Version(1, 4), Version(1, 5))
    with pytest.raises(ValueError, match=r"\(epoch 1, sequence 2\) is not retained; wanted one of \(epoch 1, seq"):
        model.rollback(Version(1, 2))
    model.rollback(Version(1, 3))
    now = model.version()
    assert int(now.dense["w"]) == 3
    assert now.tables["t"].vectors(torch.tensor([100, 3, 5])).tolist() == [[100, 3], [3, 3], [0, 0]]
    assert model.apply(change(4, [4, 100]))


def test_the_learned_unknown_vector_is_served_as_the_trainer_has_it(tmp_path: Path) -> None:
    module = CollisionlessEmbedding(TableConfig(width=WIDTH, unknown="learned"))
    log = DeltaLog(tmp_path / LOG, "b", published=tmp_path / OUT)
    assert module.unknown is not None
    log.start({"t": module}, {}, {})
    model, truth = ServingModel("b", retained=4, page_rows=4), dict[Version, torch.Tensor]()

    def follow() -> None:
        for delta in deltas_since(tmp_path / OUT, model.at):
            model.apply(delta)
        assert model.at is not None
        truth[model.at] = module.eval()(IDS).detach()
        module.train()

    def assert_served() -> None:
        now = model.version()
        table = now.tables["t"]
        assert torch.equal(table.vectors(IDS), truth[now.version])
        assert torch.equal(table.of_rows(table.find(IDS)), truth[now.version])

    follow()
    for step, moves in enumerate((True, False, True, True)):
        module(torch.arange(step, 5 * step + 5)).sum().backward()
        module.step(0.1)
        module.erase(torch.tensor([step]))
        if moves:
            with torch.no_grad():
                module.unknown.add_(torch.tensor([1.0, -2.0, step]))
        log.append({}, {})
        if step == 3:
            log.compact()  # a follower that begins here has a base alone
            model = ServingModel("b", retained=4, page_rows=4)
        follow()
        assert_served()
        if step == 2:
            for version in reversed(model.retained[:-1]):
                model.rollback(version)
                assert_served()
            follow()
            assert_served()
    assert bool(module.unknown.any())


def test_a_version_costs_the_pages_that_it_writes_to() -> None:
    model = ServingModel("b", page_rows=8)
    model.apply(change(0, list(range(800))))
    first = model.version()
    model.apply(change(1, [3, 4, 700], (9,)))
    second = model.version()
    shared = first.tables["t"].page_addresses() & second.tables["t"].page_addresses()
    assert len(first.tables["t"].page_addresses()) == 200
    assert len(shared) == 200 - (3 + 2)  # keys of 3 pages, vectors of 2


def test_rows_of_ids_that_are_gone_are_given_to_others_when_nobody_reads_them() -> None:
    model = ServingModel("b", retained=2, page_rows=8)
    model.apply(change(0, list(range(64))))
    held = model.version()
    for number in range(1, 20):
        fresh = list(range(64 * number, 64 * number + 64))
        model.apply(change(number, fresh, tuple(id_ - 64 for id_ in fresh)))
    rows_held = model.version().tables["t"].num_rows
    assert held.tables["t"].vectors(torch.arange(64))[:, 0].tolist() == list(range(64))
    assert rows_held == 20 * 64  # who holds a version keeps all later rows
    del held
    for number in range(20, 60):
        fresh = list(range(64 * number, 64 * number + 64))
        model.apply(change(number, fresh, tuple(id_ - 64 for id_ in fresh)))
    assert model.version().tables["t"].num_rows == rows_held
    assert len(model.version().tables["t"]) == 64


def test_an_id_that_came_back_keeps_its_row() -> None:
    model = ServingModel("b", retained=1, page_rows=8)
    model.apply(change(0, [1, 2, 3]))
    model.apply(change(1, [], (2,)))
    model.apply(change(2, [2]))
    for number in range(3, 6):
        model.apply(change(number, [10 * number]))
    table = model.version().tables["t"]
    assert table.vectors(torch.tensor([1, 2, 30, 50])).tolist() == [[1, 0], [2, 2], [30, 3], [50, 5]]


def test_rows_of_versions_that_were_rolled_back_are_given_to_others() -> None:
    model, fresh = ServingModel("b", retained=3, page_rows=8), iter(range(10**6))

    def apply(number: int) -> None:
        ids = [next(fresh) for _ in range(32)]
        old = tuple(model.version().tables["t"].ids().tolist())
        assert model.apply(change(number, ids, old))

    model.apply(change(0, []))
    for number in range(1, 60):
        for ahead in range(3):
            apply(number + ahead)
        model.rollback(Version(1, number + 1))
        model.rollback(Version(1, number))
    assert len(model.version().tables["t"]) == 32
    assert model.version().tables["t"].num_rows < 32 * 20


def test_readers_see_one_version_while_the_next_is_made() -> None:
    model = ServingModel("b", retained=2, page_rows=64)
    ids = list(range(5000))
    model.apply(change(0, ids))
    wanted, wrong, reads, is_over = torch.tensor(ids[::25]), [], [0], threading.Event()

    def read() -> None:
        while not is_over.is_set():
            now = model.version()
            vectors = now.tables["t"].vectors(wanted)
            same = torch.stack([wanted.float(), torch.full((len(wanted),), float(now.version.sequence))], dim=1)
            reads[0] += 1
            if not torch.equal(vectors, same):
                wrong.append(now.version)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(1, 30):
        start = 5000 * number
        model.apply(
            change(
                number,
                [*ids, *range(start, start + 2000)],
                tuple(range(start - 5000, start - 3000)) if number > 1 else (),
            )
        )
    is_over.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert reads[0] > 30

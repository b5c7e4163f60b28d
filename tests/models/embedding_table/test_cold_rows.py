"""A table of which most rows lie in a file against the one that is wholly in memory, bit for bit."""

import copy
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from recsys.models.embedding_table import (
    AdmissionConfig,
    CollisionlessEmbedding,
    EmbeddingTable,
    RowOptimizer,
    TableConfig,
    cold_rows,
)
from recsys.models.embedding_table.cold_rows import ColdRows
from tests.models.embedding_table.cold_tables import ADAGRAD, WIDTH, both, ids_of, table_of, train
from tests.models.tables import assert_same


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

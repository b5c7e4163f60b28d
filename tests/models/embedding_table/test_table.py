"""The table of ids against a dict that does the same, one id at a time."""

from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from recsys.kernels.row_pages.column import Column
from recsys.kernels.row_pages.initial_rows import drawn
from recsys.models.embedding_table import AdmissionConfig, EmbeddingTable, RowOptimizer, TableConfig
from recsys.models.embedding_table import clock as clocks
from recsys.models.embedding_table import table as tables

WIDTH = 4


def table_of(**settings: Any) -> EmbeddingTable:
    table = EmbeddingTable(TableConfig(**{"width": WIDTH, "optimizer": RowOptimizer("sgd"), **settings}), page_rows=8)
    table.clock.set(0)
    return table


def ids_of(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def touch(table: EmbeddingTable, *ids: int, second: float | None = None) -> list[int]:
    """One step: look up, one gradient of ones for each."""
    if second is not None:
        table.clock.set(second)
    rows = table.look_up(ids_of(*ids))
    table.update(rows, torch.ones(len(rows), WIDTH), lr=0.5)
    table.advance()
    return rows.tolist()


def known(table: EmbeddingTable) -> set[int]:
    return set(table.index.export()[0].tolist())


def test_a_new_id_begins_with_the_vector_of_its_seed_and_id() -> None:
    table = table_of(seed=3, init_std=0.1)
    rows = table.look_up(ids_of(5, -9, 5))
    assert torch.equal(table.pages.gather(rows), drawn(ids_of(5, -9, 5), WIDTH, 3, 0.1))


def test_new_vectors_are_nearly_normal_and_independent() -> None:
    vectors = drawn(torch.arange(50_000), 8, 0, 2.0)
    assert abs(float(vectors.mean())) < 0.02
    assert abs(float(vectors.std()) - 2.0) < 0.02
    assert float(torch.corrcoef(vectors.T).fill_diagonal_(0).abs().max()) < 0.02
    assert float(torch.corrcoef(torch.stack([vectors[:-1, 0], vectors[1:, 0]]))[0, 1].abs()) < 0.02
    assert not torch.equal(vectors, drawn(torch.arange(50_000), 8, 1, 2.0))


def test_look_up_in_evaluation_inserts_nothing_and_counts_the_unknown() -> None:
    table = table_of()
    touch(table, 1, 2)
    assert table.find(ids_of(2, 7, 7)).tolist() == [1, -1, -1]
    assert (len(table), table.counts.unknown) == (2, 2)


def test_without_eviction_a_full_table_refuses_and_counts() -> None:
    table = table_of(capacity=2)
    assert touch(table, 1, 2, 3, 3) == [0, 1, -1, -1]
    assert (known(table), table.counts.refused) == ({1, 2}, 2)


def test_lru_drops_what_was_touched_longest_ago() -> None:
    table = table_of(capacity=3, eviction="lru")
    for id_ in (1, 2, 3, 1, 4):
        touch(table, id_)
    assert known(table) == {1, 3, 4}
    touch(table, 3)
    touch(table, 5, 6)
    assert known(table) == {3, 5, 6}
    assert table.counts.evicted == 3


def test_lfu_drops_what_had_the_fewest_steps() -> None:
    table = table_of(capacity=3, eviction="lfu")
    for id_ in (1, 1, 2, 3, 3, 3, 4, 4, 4, 5):
        touch(table, id_)
    assert known(table) == {3, 4, 5}


def test_ttl_drops_only_what_is_past_its_time() -> None:
    table = table_of(capacity=2, eviction="ttl", ttl_s=10)
    touch(table, 1, second=0)
    touch(table, 2, second=5)
    assert touch(table, 3, second=9) == [-1]
    assert touch(table, 3, second=10) == [0]
    assert touch(table, 4, second=14) == [-1]
    assert (known(table), table.counts.evicted, table.counts.refused) == ({2, 3}, 1, 2)


def test_rows_of_the_running_step_are_never_evicted() -> None:
    table = table_of(capacity=2, eviction="lru")
    touch(table, 1, 2)
    rows = table.look_up(ids_of(1))
    assert rows.tolist() == [0]
    assert table.look_up(ids_of(3, 4)).tolist() == [1, -1]
    assert (known(table), table.counts.refused, table.counts.evicted) == ({1, 3}, 1, 1)


def test_no_row_is_evicted_twice_when_a_call_needs_more_than_the_queue_holds() -> None:
    table = table_of(capacity=640, eviction="lru")  # the queue holds ten rows
    for start in range(0, 640, 10):
        touch(table, *range(start, start + 10))
    touch(table, *range(1000, 1004))
    rows = touch(table, *range(2000, 2015))
    assert min(rows) >= 0
    assert table.counts.evicted == 4 + 15
    assert known(table) == {*range(19, 640), *range(1000, 1004), *range(2000, 2015)}


def test_a_freed_row_and_its_state_are_those_of_a_new_one() -> None:
    table = table_of(capacity=1, eviction="lru", optimizer=RowOptimizer("adam"))
    touch(table, 1)
    touch(table, 1)
    row = table.look_up(ids_of(2))
    assert row.tolist() == [0]
    vectors, states, _ = table.pages.read(row)
    assert torch.equal(vectors, drawn(ids_of(2), WIDTH, 0, 0.02))
    assert not states.any()
    table.erase(ids_of(2))
    assert not any(part.any() for part in table.pages.read(row)[:2])


def test_expiry_is_a_time_to_live_in_seconds() -> None:
    table = table_of(ttl_s=10)
    touch(table, 1, second=0)
    touch(table, 2, second=4)
    touch(table, 1, second=6)
    table.clock.set(13.9)
    assert table.expire() == 0
    table.clock.set(14)
    assert table.expire() == 1
    assert (known(table), table.counts.expired) == ({1}, 1)


def test_a_free_row_takes_no_gradient() -> None:
    table = table_of()
    rows = table.look_up(ids_of(1, 2))
    table.erase(ids_of(2))
    table.update(rows, torch.ones(2, WIDTH), lr=1.0)
    assert table.live_rows().tolist() == [0]
    assert not table.pages.gather(ids_of(1)).any()


def test_a_row_that_grows_too_old_within_a_second_is_found() -> None:
    table = table_of(capacity=1, eviction="ttl", ttl_s=0.5)
    touch(table, 1, second=3.0)
    assert touch(table, 2, second=3.2) == [-1]
    assert touch(table, 2, second=3.5) == [0]


def test_features_have_a_time_to_live_of_their_own() -> None:
    one, other = 5 | 1 << 60, 5 | 2 << 60
    table = table_of(feature_bits=4, ttl_s=100, feature_ttl_s={2: 10})
    touch(table, one, other, second=0)
    table.clock.set(50)
    assert table.expire() == 1
    assert known(table) == {one}
    table.clock.set(100)
    assert table.expire() == 1


def test_expiry_reads_ids_only_of_rows_that_go_or_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "EXPIRY_ROWS", 16)
    read = list[int]()
    ids_of_rows = EmbeddingTable.ids_of

    def counted(table: EmbeddingTable, rows: torch.Tensor) -> torch.Tensor:
        read.append(len(rows))
        return ids_of_rows(table, rows)

    monkeypatch.setattr(EmbeddingTable, "ids_of", counted)
    plain, by_feature = table_of(ttl_s=10), table_of(feature_bits=4, ttl_s=10, feature_ttl_s={2: 100})
    for table in (plain, by_feature):  # five rows of feature 2 may go, and stay
        touch(table, 1, 2, 3, *(5 + n | 2 << 60 for n in range(5) if table is by_feature), second=0)
        for second in range(1, 8):
            touch(table, *range(100 * second, 100 * second + 20), second=second)
        for now_s, gone in ((9.0, 0), (10.0, 3), (10.5, 0), (11.0, 20)):
            read.clear()
            table.clock.set(now_s)
            assert table.expire() == gone
            assert sum(read) == (0 if not gone else gone if table is plain else 2 * gone + 5)


@pytest.mark.parametrize("eviction", ["none", "ttl"])
def test_expiry_that_found_nothing_left_looks_again_once_time_goes_on(eviction: Any) -> None:
    table = table_of(capacity=4, eviction=eviction, ttl_s=5)
    state = table.state()
    for second in range(30):
        touch(table, second, second=second)
        kept = {id_ for id_ in range(second + 1) if second - id_ < 5}
        table.expire()
        assert table.expire() == 0
        assert known(table) <= kept
        if second % 10 == 9:  # a state of before any step: its rows are none of those
            held = table.state()
            table.load_state(state)
            assert table.expire() == 0
            table.load_state(held)
            table.clock.set(second + 5)
            assert table.expire() == len(held["ids"])
            table.load_state(held)


def test_a_threshold_admits_an_id_when_it_was_seen_so_often() -> None:
    table = table_of(admission=AdmissionConfig(mode="threshold", threshold=20))
    for _ in range(9):
        assert touch(table, 7, 7) == [-1, -1]
    assert touch(table, 8) == [-1]
    assert touch(table, 7, 7) == [0, 0]
    assert (known(table), table.counts.not_admitted) == ({7}, 19)


def test_of_many_rows_some_are_read_evenly() -> None:
    table = table_of()
    touch(table, *range(100, 120))
    table.erase(ids_of(104))
    assert table.live()[0].tolist() == [id_ for id_ in range(100, 120) if id_ != 104]
    ids, vectors = table.live(6)
    assert ids.tolist() == [100, 103, 107, 110, 113, 116]
    assert torch.equal(vectors, table.pages.gather(table.index.find(ids)))
    assert len(table.live(19)[0]) == 19


def test_changes_tell_what_was_touched_and_what_is_gone() -> None:
    table = table_of(ttl_s=10)
    touch(table, 1, 2, 3, second=0)
    since = table.follow()
    touch(table, 2, 4, second=8)
    table.erase(ids_of(3))
    table.clock.set(12)
    table.expire()
    touch(table, 3)
    changes = table.changes(since)
    assert sorted(table.ids_of(changes.rows).tolist()) == [2, 3, 4]
    assert changes.deleted.tolist() == [1]
    later = table.follow(since=table.clock.tick)
    assert len(table.changes(later).rows) == 0
    with pytest.raises(ValueError, match=f"changes since tick {since} are not known, only those since {later}"):
        table.changes(since)


def test_ticks_are_renumbered_when_they_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (clocks, tables):
        monkeypatch.setattr(module, "MOST_TICKS", 20)
    short, long = table_of(capacity=4, eviction="lru", ttl_s=7), table_of(capacity=4, eviction="lru", ttl_s=7)
    generator = torch.Generator().manual_seed(0)
    for step in range(90):
        ids = torch.randint(0, 9, (2,), generator=generator).tolist()
        for table, most in ((short, 20), (long, 10**6)):
            for module in (clocks, tables):
                monkeypatch.setattr(module, "MOST_TICKS", most)
            touch(table, *ids, second=step // 3)
            table.expire()
        assert known(short) == known(long)
    assert short.clock.tick <= 20 < long.clock.tick


@pytest.mark.parametrize("eviction", ["none", "lru", "lfu", "ttl"])
@pytest.mark.parametrize("mode", ["all", "threshold", "probability"])
def test_a_reloaded_table_goes_on_bit_for_bit(eviction: Any, mode: Any) -> None:
    admission = AdmissionConfig(mode=mode, threshold=1 if mode == "all" else 3, capacity=12, splits=3)
    config: dict[str, Any] = {"capacity": 8, "eviction": eviction, "ttl_s": 5, "admission": admission}
    config["optimizer"] = RowOptimizer("adam")
    generator = torch.Generator().manual_seed(1)
    stream = [torch.randint(0, 30, (6,), generator=generator).tolist() for _ in range(60)]
    whole, part = table_of(**config), table_of(**config)
    for number, ids in enumerate(stream):
        if number == 30:
            state = {name: value.clone() for name, value in part.state().items()}
            part = table_of(**config)
            part.load_state(state)
        for table in (whole, part):
            touch(table, *ids, second=number)
            if number % 7 == 0:
                table.expire()
    ours, theirs = whole.state(), part.state()
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    assert whole.counts == part.counts


def test_a_state_loads_into_another_capacity_and_not_into_one_too_small() -> None:
    table = table_of(capacity=8, eviction="lru")
    touch(table, *range(8))
    larger = table_of(capacity=100, eviction="lru")
    larger.load_state(table.state())
    touch(larger, 50)
    assert known(larger) == {*range(8), 50}
    smaller = table_of(capacity=5, eviction="lru")
    touch(smaller, 77)
    with pytest.raises(ValueError, match="there are 8 ids; wanted at most max_rows=5"):
        smaller.load_state(table.state())
    assert known(smaller) == {77}
    assert touch(smaller, 77) == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 8}, r"'vectors' is of the shape \(2, 4\); this table's is \(2, 8\)"),
        ({"optimizer": RowOptimizer("adam")}, "the state's rows were trained by sgd, this table's are by adam"),
        (
            {"admission": AdmissionConfig(mode="threshold", threshold=2)},
            "the state has no 'admission.ids', which a table",
        ),
        ({"capacity": 9, "eviction": "lfu"}, "the state has no 'counts'"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_by_name(settings: Any, message: str) -> None:
    table, other = table_of(), table_of(**settings)
    touch(table, 1, 2)
    with pytest.raises(ValueError, match=message):
        other.load_state(table.state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eviction": "lru"}, "eviction=lru without a capacity; set capacity"),
        ({"eviction": "fifo", "capacity": 3}, "eviction='fifo'; wanted none, lru, lfu, ttl"),
        ({"eviction": "ttl", "capacity": 3}, "eviction=ttl without a time to live; set ttl_s"),
        ({"capacity": 0}, "capacity=0; wanted at least 1"),
        ({"ttl_s": 0}, "ttl_s=0; wanted above 0"),
        ({"feature_ttl_s": {3: 1.0}}, "feature_ttl_s names feature 3; wanted 0 to 0"),
        ({"id_dropout": 0.1}, "id_dropout=0.1 with unknown=zero"),
        ({"expected": 9, "capacity": 3}, "expected=9; wanted at least 0 and at most capacity=3"),
        ({"unknown": "one"}, "unknown='one'; wanted zero, learned"),
        ({"width": 0}, "width=0; wanted at least 1"),
        ({"width": True}, "width=True; wanted a whole number"),
        ({"width": 4.0}, r"width=4\.0; wanted a whole number"),
        ({"init_std": -1}, "init_std=-1; wanted at least 0"),
        ({"init_std": float("inf")}, "init_std=inf; wanted a finite number"),
        ({"capacity": 1.5}, r"capacity=1\.5; wanted a whole number, or null"),
        ({"capacity": True}, "capacity=True; wanted a whole number, or null"),
        ({"capacity": "9"}, "capacity='9'; wanted a whole number, or null"),
        ({"ttl_s": True}, "ttl_s=True; wanted a finite number, or null"),
        ({"ttl_s": "5"}, "ttl_s='5'; wanted a finite number, or null"),
        ({"ttl_s": float("nan")}, "ttl_s=nan; wanted a finite number, or null"),
        ({"feature_bits": 3.5}, r"feature_bits=3\.5; wanted a whole number"),
        ({"feature_ttl_s": [5.0]}, r"feature_ttl_s=\[5\.0\]; wanted a mapping of a whole number to a finite number"),
        ({"feature_ttl_s": {"0": 5.0}}, "feature_ttl_s={'0': 5.0}; wanted a mapping of a whole number"),
        ({"feature_ttl_s": {0: -1}}, r"feature_ttl_s\[0\]=-1; wanted above 0"),
        ({"expected": 1.5}, r"expected=1\.5; wanted a whole number"),
        ({"seed": 1.5}, r"seed=1\.5; wanted a whole number"),
        ({"seed": None}, "seed=None; wanted a whole number"),
        ({"hot_rows": 1.5, "cold_file": "rows"}, r"hot_rows=1\.5; wanted a whole number, or null"),
        ({"hot_rows": 2, "cold_file": 7}, "cold_file=7; wanted a text, or null"),
        ({"optimizer": "adam"}, "optimizer='adam'; wanted an instance of RowOptimizer"),
        ({"admission": "threshold"}, "admission='threshold'; wanted an instance of AdmissionConfig"),
    ],
)
def test_what_is_no_configuration_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table_of(**settings)


def test_every_id_that_goes_in_one_call_is_told_of() -> None:
    table = table_of(capacity=9, eviction="lru", ttl_s=10)
    touch(table, *range(9), second=0)
    since = table.follow()
    table.erase(ids_of(0, 1, 2, 50))
    touch(table, 3, 4, second=5)
    touch(table, *range(100, 106))
    assert table.changes(since).deleted.tolist() == [0, 1, 2, 5, 6, 7]
    table.clock.set(12)
    table.expire()
    assert table.changes(since).deleted.tolist() == [0, 1, 2, 5, 6, 7, 8]
    table.clock.set(15)
    table.expire()
    assert table.changes(since).deleted.tolist() == [*range(9), *range(100, 106)]


def test_a_row_that_is_in_use_does_not_expire() -> None:
    table = table_of(ttl_s=10)
    touch(table, 1, second=0)
    table.clock.set(20)
    rows = table.look_up(ids_of(1))
    assert table.expire() == 0
    table.update(rows, torch.ones(1, WIDTH), lr=1.0)
    assert known(table) == {1}


def test_no_row_goes_before_its_time_within_a_second() -> None:
    table = table_of(ttl_s=1)
    touch(table, 1, second=100.99)
    table.clock.set(101.9)
    assert table.expire() == 0
    table.clock.set(102)
    assert table.expire() == 1


def test_memory_that_ends_amid_growth_leaves_the_table_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of()
    touch(table, *range(8))
    table.erase(ids_of(6))
    touch(table, 6)
    whole, left = Column._new_page, [1]

    def scarce(column: Column, is_given: bool = False) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise MemoryError("no page is left")
        return whole(column, is_given)

    monkeypatch.setattr(Column, "_new_page", scarce)
    with pytest.raises(MemoryError):
        table.look_up(ids_of(3, 50, 51))
    assert (known(table), table.live_rows().tolist()) == (set(range(8)), list(range(8)))
    left[0] = 100
    table_of().load_state(table.state())
    assert touch(table, 50, 51) == [8, 9]
    assert sorted(table.ids_of(table.live_rows()).tolist()) == [*range(8), 50, 51]


@pytest.mark.parametrize(
    ("rows", "gradients", "message"),
    [
        ([99], torch.ones(1, WIDTH), "row 99 is asked for; there is memory for 8"),
        ([0], torch.ones(1, WIDTH + 1), r"gradients is torch.float32 of the shape \(1, 5\); wanted numbers \(1, 4\)"),
        ([0, 1], torch.ones(1, WIDTH), r"gradients is .* \(1, 4\); wanted numbers \(2, 4\)"),
        ([0], torch.ones(1, WIDTH, dtype=torch.int64), "gradients is torch.int64"),
    ],
)
def test_an_update_that_does_not_fit_is_refused(rows: list[int], gradients: torch.Tensor, message: str) -> None:
    table = table_of()
    touch(table, 1, 2)
    with pytest.raises(ValueError, match=message):
        table.update(ids_of(*rows), gradients, lr=0.1)


@pytest.mark.parametrize("lr", [float("nan"), float("inf"), -0.1])
def test_a_learning_rate_that_is_none_is_refused_and_nothing_is_applied(lr: float) -> None:
    table = table_of()
    touch(table, 1, 2)
    before = table.pages.gather(ids_of(0, 1))
    with pytest.raises(ValueError, match=f"lr={lr}; wanted at least 0"):
        table.update(ids_of(0, 1), torch.ones(2, WIDTH), lr=lr)
    assert torch.equal(table.pages.gather(ids_of(0, 1)), before)


def test_narrow_gradients_are_taken() -> None:
    table = table_of(init_std=0.0)
    table.update(table.look_up(ids_of(1)), torch.ones(1, WIDTH, dtype=torch.bfloat16), lr=1.0)
    assert table.pages.gather(ids_of(0)).tolist() == [[-1.0] * WIDTH]


def test_a_state_of_unequal_parts_is_refused() -> None:
    table, other = table_of(), table_of()
    touch(table, 1, 2, 3)
    touch(other, 7)
    state = table.state()
    cut = {**state, **{name: state[name][:2] for name in ("vectors", "states", "ticks")}}
    with pytest.raises(ValueError, match="the state has 3 ids, 3 rows and 0 free ones, but 2 ticks"):
        other.load_state(cut)
    with pytest.raises(ValueError, match="'vectors' is torch.float16; wanted torch.float32"):
        other.load_state({**state, "vectors": state["vectors"].half()})
    assert known(other) == {7}


def test_a_free_rows_state_and_count_are_those_of_a_new_one() -> None:
    table = table_of(capacity=4, eviction="lfu", optimizer=RowOptimizer("adagrad", initial_accumulator=0.5))
    touch(table, 1)
    touch(table, 1)
    table.erase(ids_of(1))
    assert torch.equal(table.pages.states.gather(ids_of(0)), torch.full((1, WIDTH), 0.5))
    assert table.pages.counts is not None
    assert table.pages.counts.gather(ids_of(0)).tolist() == [[0]]


@pytest.mark.parametrize("lost", ["free", "ids", "clock.tick", "deleted.ids", "seed", "counts_so_far", "optimizer"])
def test_a_state_that_lacks_a_part_is_refused_and_changes_nothing(lost: str) -> None:
    table, other = table_of(), table_of()
    touch(table, 1, 2)
    touch(other, 7)
    state = {name: value for name, value in table.state().items() if name != lost}
    with pytest.raises(ValueError, match=f"the state has no '{lost}', which a table with this configuration has"):
        other.load_state(state)
    with pytest.raises(ValueError, match="the state has 'more', which a table with this configuration has not"):
        other.load_state({**table.state(), "more": torch.zeros(1)})
    assert known(other) == {7}


def test_seconds_that_no_row_was_touched_in_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clocks, "LONG", 16)
    table = table_of(ttl_s=40)
    touch(table, 99, second=0)
    for second in range(1, 600):
        touch(table, second % 7, second=second)
        assert len(table.clock.state()["starts"]) <= 128
        if second == 39:
            assert table.expire() == 0
        if second == 40:
            assert table.expire() == 1
    assert table.clock.seconds_of(table.pages.ticks.gather(table.index.find(ids_of(4))).squeeze(1)).tolist() == [599]


@pytest.mark.parametrize("second", [float("nan"), float("inf"), None, "5", True])
def test_what_is_no_time_is_refused(second: Any) -> None:
    with pytest.raises(ValueError, match=f"the clock is set to {second}; wanted a number of seconds"):
        table_of().clock.set(second)


@pytest.mark.parametrize("second", [1e300, -1e300, 2**63, 253_402_300_801, 1_700_000_000_000])
def test_an_absurd_time_is_refused_and_the_table_goes_on(second: float) -> None:
    table = table_of()
    with pytest.raises(ValueError, match=r"the clock is set to .*; wanted seconds since 1970, at most 253402300800$"):
        table.clock.set(second)
    touch(table, 1, second=253_402_300_800)
    assert table.clock.now_s == 253_402_300_800


def test_after_the_machines_clock_its_current_second_may_be_set_and_none_before() -> None:
    table = EmbeddingTable(TableConfig(width=WIDTH, ttl_s=5.0), page_rows=8)
    table.look_up(ids_of(1))
    table.advance()
    ended = int(table.clock.seconds_of(torch.tensor([0])))
    with pytest.raises(ValueError, match=f"is set to {ended - 1}.0, but stood at {ended}; time may not go back"):
        table.clock.set(ended - 1)
    table.clock.set(ended - 0.75)
    table.advance()
    with pytest.raises(ValueError, match=f"is set to {ended - 0.875}, but stood at {ended - 0.75}; time may not"):
        table.clock.set(ended - 0.875)
    table.clock.set(ended + 4.5)
    assert table.expire() == 0
    table.clock.set(ended + 5)
    assert table.expire() == 1


def test_time_may_not_go_back() -> None:
    table = table_of()
    table.clock.set(5)
    with pytest.raises(ValueError, match=r"the clock is set to 4\.0, but stood at 5\.0; time may not go back"):
        table.clock.set(4)


IDS = st.lists(st.integers(-3, 12), max_size=8)


class Lru(RuleBasedStateMachine):
    """An LRU table with a time to live, and vectors that count their gradients."""

    @initialize(capacity=st.integers(1, 9))
    def begin(self, capacity: int) -> None:
        self.table = table_of(capacity=capacity, eviction="lru", ttl_s=4, init_std=0.0)
        self.capacity, self.second, self.step = capacity, 0, 0
        self.rows: dict[int, list[int]] = {}  # id: value, step and second of the last touch, row
        self.free: list[int] = []
        self.given = 0

    @rule(ids=IDS, wait=st.integers(0, 3))
    def train(self, ids: list[int], wait: int) -> None:
        self.second += wait
        rows = touch(self.table, *ids, second=self.second)
        for id_ in ids:
            if id_ in self.rows:
                self.rows[id_][1:3] = self.step, self.second
        new = list(dict.fromkeys(id_ for id_ in ids if id_ not in self.rows))
        missing = len(new) - (self.capacity - len(self.rows))
        old = sorted((row[1], row[3], id_) for id_, row in self.rows.items() if row[1] < self.step)
        for _, _, id_ in old[: max(missing, 0)]:
            self._drop(id_)
        for id_ in new[: self.capacity - len(self.rows)]:
            row = self.free.pop() if self.free else self.given
            self.given = max(self.given, row + 1)
            self.rows[id_] = [0, self.step, self.second, row]
        for id_, row in zip(ids, rows, strict=True):
            assert row == (self.rows[id_][3] if id_ in self.rows else -1)
            if id_ in self.rows:
                self.rows[id_][0] -= 1
        self.step += 1

    @rule(wait=st.integers(0, 4))
    def expire(self, wait: int) -> None:
        self.second += wait
        self.table.clock.set(self.second)
        old = sorted((row[3], id_) for id_, row in self.rows.items() if self.second - row[2] >= 4)
        assert self.table.expire() == len(old)
        for _, id_ in old:
            self._drop(id_)

    @rule(ids=IDS)
    def erase(self, ids: list[int]) -> None:
        self.table.erase(ids_of(*ids))
        for id_ in ids:
            if id_ in self.rows:
                self._drop(id_)

    @rule()
    def reload(self) -> None:
        state = self.table.state()
        self.table = table_of(capacity=self.capacity, eviction="lru", ttl_s=4, init_std=0.0)
        self.table.load_state(state)

    @invariant()
    def same(self) -> None:
        ids = torch.arange(-3, 13)
        rows = self.table.index.find(ids)
        values = self.table.pages.gather(rows)[:, 0]
        for id_, row, value in zip(ids.tolist(), rows.tolist(), values.tolist(), strict=True):
            assert row == (self.rows[id_][3] if id_ in self.rows else -1)
            assert value == (0.5 * self.rows[id_][0] if id_ in self.rows else 0)
        assert set(self.table.live_rows().tolist()) == {row[3] for row in self.rows.values()}

    def _drop(self, id_: int) -> None:
        self.free.append(self.rows.pop(id_)[3])


TestLru = Lru.TestCase
TestLru.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

"""Which rows go: the queue against a sort of all rows, at every call."""

from typing import Any

import pytest
import torch

from recsys.kernels.row_pages import RowOptimizer, RowPages, column
from recsys.kernels.row_pages.marks import FREE
from recsys.models.embedding_table import EmbeddingTable, TableConfig
from recsys.models.embedding_table import eviction as evictions
from recsys.models.embedding_table.eviction import EvictionQueue
from recsys.models.embedding_table.oldest_rows import OldestRows

PATHS = pytest.mark.parametrize("path", ["numba", "torch"])


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tables of a few hundred rows are looked at in many parts."""
    monkeypatch.setattr(evictions, "LEAST_SEEN", 3)
    monkeypatch.setattr(evictions, "LEAST_TAKEN", 2)


def take_path(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(column, "has_numba", lambda: path == "numba")


class Rows:
    """Rows that are touched, freed and given anew, a tick a step."""

    def __init__(self, num_rows: int, seed: int, are_counted: bool = False) -> None:
        self.pages = RowPages(2, RowOptimizer("sgd"), page_rows=16, are_counted=are_counted)
        self.pages.grow(num_rows)
        self.num_rows, self.tick, self.generator = num_rows, 20, torch.Generator().manual_seed(seed)
        every = torch.arange(num_rows)
        self.pages.ticks.put(every, self.draw(0, 20, num_rows)[:, None])
        if self.pages.counts is not None:
            self.pages.counts.put(every, self.draw(0, 5, num_rows)[:, None])

    def draw(self, low: int, high: int, count: int) -> torch.Tensor:
        return torch.randint(low, high, (count,), generator=self.generator)

    def step(self) -> None:
        """Some rows are touched, one is freed, and free ones are given again."""
        self.tick += 1
        touched = torch.unique(self.draw(0, self.num_rows, 6))
        touched = touched[self.ticks()[touched] != FREE]
        self.pages.ticks.put_all(touched, self.tick)
        if self.pages.counts is not None:
            self.pages.counts.put(touched, self.pages.counts.gather(touched) + 1)
        self.free(self.draw(0, self.num_rows, 1))
        free = (self.ticks() == FREE).nonzero().squeeze(1)[:8]
        self.pages.ticks.put_all(free, self.tick)

    def free(self, rows: torch.Tensor) -> None:
        self.pages.ticks.put_all(rows, FREE)
        if self.pages.counts is not None:
            self.pages.counts.put_all(rows, 0)

    def ticks(self) -> torch.Tensor:
        return self.pages.all_of(self.pages.ticks, self.num_rows).squeeze(1).long()

    def first(self, count: int, before: int) -> list[int]:
        """By a sort of all rows."""
        order = sorted((tick, row) for row, tick in enumerate(self.ticks().tolist()) if 0 <= tick < before)
        return [row for _, row in order[:count]]

    def queue(self, **settings: Any) -> EvictionQueue:
        return EvictionQueue(self.pages, lambda: self.num_rows, self.num_rows, **{"parts": 9, **settings})


@PATHS
@pytest.mark.parametrize("behind", [None, 0, 30])
@pytest.mark.parametrize("seed", range(6))
def test_lru_and_ttl_take_what_a_sort_of_all_rows_would(
    path: str, behind: int | None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_path(path, monkeypatch)
    rows = Rows(300, seed)
    queue = rows.queue(first_kept=None if behind is None else lambda: rows.tick - behind)
    total = 0
    for number in range(150):
        rows.step()
        count = int(rows.draw(0, 120 if number % 40 == 39 else 9, 1))
        before = rows.tick if behind is None else min(rows.tick, rows.tick - behind)
        wanted = rows.first(count, before)
        taken = queue.take(count, rows.tick)
        assert taken.tolist() == wanted
        rows.free(taken)
        total += len(taken)
    assert total > 300


@PATHS
def test_lfu_takes_the_fewest_steps_as_they_were_at_the_last_look(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    take_path(path, monkeypatch)
    rows = Rows(300, 1, are_counted=True)
    queue, ahead, total = rows.queue(by_count=True), list[tuple[int, int]](), 0  # row and tick
    for _ in range(120):
        rows.step()
        assert rows.pages.counts is not None
        count, wanted = int(rows.draw(0, 20, 1)), list[int]()
        while len(wanted) < count:
            if not ahead:
                counts = rows.pages.all_of(rows.pages.counts, 300).squeeze(1).tolist()
                order = sorted(
                    (counts[row], tick, row)
                    for row, tick in enumerate(rows.ticks().tolist())
                    if 0 <= tick < rows.tick and row not in wanted
                )
                ahead = [(row, tick) for _, tick, row in order[: max(300 // 9, count - len(wanted))]]
            if not ahead:
                break
            row, tick = ahead.pop(0)
            if int(rows.ticks()[row]) == tick:
                wanted.append(row)
        taken = queue.take(count, rows.tick)
        assert taken.tolist() == wanted
        rows.free(taken)
        total += len(taken)
    assert total > 300


@PATHS
@pytest.mark.parametrize("seed", range(4))
def test_however_a_search_is_cut_what_it_finds_comes_before_all_else(
    path: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_path(path, monkeypatch)
    rows = Rows(400, seed)
    search = OldestRows(rows.pages, 400, 50, rows.tick)
    before = rows.tick
    for stop in range(0, 400, 7):
        search.go_on(stop)
        assert search.num_seen == stop
        assert search.num_bytes <= 2 * 50 * 16
        rows.step()
    found, ticks = search.found()
    left = [row for row, tick in zip(found.tolist(), ticks.tolist(), strict=True) if rows.ticks()[row] == tick]
    assert 10 < len(left) < 50
    assert left == rows.first(len(left), before)


@PATHS
@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_in_any_order_of_ticks_as_many_rows_are_found_as_asked_for(
    path: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_path(path, monkeypatch)
    rows = Rows(500, 0)
    every = torch.arange(500)
    ticks = {"ascending": every, "descending": 499 - every, "equal": torch.full((500,), 7)}[order]
    rows.pages.ticks.put(every, ticks[:, None])
    found, their = OldestRows(rows.pages, 500, 60, 1000).found()
    assert found.tolist() == rows.first(60, 1000)
    assert torch.equal(their, ticks[found])


def test_no_call_of_a_steady_stream_looks_at_all_rows() -> None:
    rows = Rows(2000, 3)
    queue = rows.queue(parts=20)
    rows.free(queue.take(1, rows.tick))  # the first look is one
    most = ends = 0
    for _ in range(300):
        rows.step()
        before = 0 if queue._next is None else queue._next.num_seen
        rows.free(queue.take(5, rows.tick))
        assert queue._next is not None
        seen = queue._next.num_seen - before
        if seen < 0:  # the queue was filled anew by what was found: the rest of that search, and some of the next one
            ends += 1
            seen = 2000 - before + queue._next.num_seen
        most = max(most, seen)
    assert ends > 10
    assert most < 2000 // 2


def table_of(eviction: str, **settings: Any) -> EmbeddingTable:
    config = {"width": 2, "optimizer": RowOptimizer("sgd"), "capacity": 320, "eviction": eviction, **settings}
    table = EmbeddingTable(TableConfig(**config), page_rows=16)
    table.clock.set(0)
    return table


def train(table: EmbeddingTable, ids: torch.Tensor, second: int) -> None:
    table.clock.set(second)
    rows = table.look_up(ids)
    table.update(rows, torch.ones(len(rows), 2), lr=0.5)
    table.advance()


FEATURES = {"feature_bits": 1, "ttl_s": 9.0, "feature_ttl_s": {1: 25.0}}


@pytest.mark.parametrize(
    ("eviction", "settings"), [("lru", {}), ("lfu", {}), ("ttl", {"ttl_s": 9.0}), ("ttl", FEATURES)]
)
def test_paths_and_reloads_change_no_bit_of_a_table(
    eviction: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(5)
    stream = [torch.randint(0, 900, (25,), generator=generator) << (step % 2) * 40 for step in range(120)]
    whole, by_torch, reloaded = (table_of(eviction, **settings) for _ in range(3))
    if settings is FEATURES:
        stream = [ids | torch.where(ids % 3 == 0, -(2**63), 0) for ids in stream]
    for step, ids in enumerate(stream):
        take_path("numba", monkeypatch)
        train(whole, ids, step // 2)
        if step % 3 == 0:
            state = {name: value.clone() for name, value in reloaded.state().items()}
            reloaded = table_of(eviction, **settings)
            reloaded.load_state(state)
        train(reloaded, ids, step // 2)
        take_path("torch", monkeypatch)
        train(by_torch, ids, step // 2)
    assert whole.counts.evicted > 300
    state = whole.state()
    for other in (by_torch, reloaded):
        theirs = other.state()
        assert state.keys() == theirs.keys()
        for name in state:
            assert torch.equal(state[name], theirs[name]), name


def test_a_state_that_holds_the_queue_of_an_exact_order_loads_and_goes_on_the_same() -> None:
    one, other = table_of("lru"), table_of("lru")
    for step in range(40):
        train(one, torch.arange(step * 10, step * 10 + 10), 0)
    state = one.state()
    oldest = one.pages.ticks.gather(torch.arange(5)).squeeze(1).long()
    other.load_state(state | {"eviction.rows": torch.arange(5).flip(0), "eviction.ticks": oldest.flip(0)})
    for step in range(5):
        for table in (one, other):
            train(table, torch.arange(10_000 + step, 10_003 + step), 0)
    ours, theirs = one.state(), other.state()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_queue_whose_rows_were_all_touched_gives_those_that_follow() -> None:
    rows = Rows(200, 2)
    queue = rows.queue()
    rows.free(queue.take(1, rows.tick))
    rows.tick += 1
    rows.pages.ticks.put_all(torch.tensor(rows.first(180, rows.tick)), rows.tick)
    wanted = rows.first(50, rows.tick)
    assert len(wanted) < 50
    assert queue.take(50, rows.tick).tolist() == wanted

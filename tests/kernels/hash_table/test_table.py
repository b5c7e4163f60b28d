"""The hash table against a dict, on each index that it may have."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from recsys.kernels.cpu.owed_memory import LARGE_PAGE_BYTES
from recsys.kernels.hash_table import HashTable, HashTableReference, index, numba_index, table
from recsys.kernels.hash_table import numba_kernels as kernels
from recsys.kernels.hash_table.numba_index import NumbaIndex
from recsys.kernels.hash_table.sorted_index import SortedIndex
from recsys.kernels.mixing import signed, unmixed

INDEXES: dict[str, Callable[[int, torch.device], Any]] = {
    "numba": lambda expected, _: NumbaIndex(expected),
    "sorted": lambda _, device: SortedIndex(device),
}
EXTREMES = [0, -1, 1, 2**63 - 1, -(2**63)]
IDS = st.lists(st.one_of(st.integers(0, 40), st.sampled_from(EXTREMES)), max_size=60)


@pytest.fixture(params=list(INDEXES), autouse=True)
def _index(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "new_index", INDEXES[request.param])


def ids_of(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


def test_a_new_id_gets_the_next_row_and_keeps_it() -> None:
    hash_table = HashTable()
    first = hash_table.find_or_insert(ids_of([7, 9, 7, -1]))
    assert first.rows.tolist() == [0, 1, 0, 2]
    assert first.new.tolist() == [0, 1, 3]
    again = hash_table.find_or_insert(ids_of([-1, 8]))
    assert again.rows.tolist() == [2, 3]
    assert hash_table.find(ids_of([8, 5])).tolist() == [3, -1]
    assert (len(hash_table), hash_table.num_rows) == (4, 4)


def test_a_freed_row_is_given_again_the_last_one_first() -> None:
    hash_table = HashTable()
    hash_table.find_or_insert(ids_of([1, 2, 3, 4]))
    assert hash_table.erase(ids_of([2, 5, 4, 2])).tolist() == [1, -1, 3, -1]
    assert hash_table.find_or_insert(ids_of([6, 7, 8])).rows.tolist() == [3, 1, 4]


def test_what_finds_no_room_is_refused_and_counted() -> None:
    hash_table = HashTable(max_rows=2)
    inserted = hash_table.find_or_insert(ids_of([5, 6, 7, 5, 7]))
    assert inserted.rows.tolist() == [0, 1, -1, 0, -1]
    assert inserted.new.tolist() == [0, 1]
    assert hash_table.num_refused == 2
    hash_table.erase(ids_of([5]))
    assert hash_table.find_or_insert(ids_of([7])).rows.tolist() == [0]


def test_many_ids_grow_the_table_and_none_is_lost() -> None:
    generator = np.random.default_rng(0)
    ids = torch.from_numpy(generator.integers(-(2**62), 2**62, 20_000))
    hash_table, rows = HashTable(), []
    for part in torch.split(ids, 3_001):
        rows.append(hash_table.find_or_insert(part).rows)
    assert torch.equal(torch.cat(rows), torch.arange(len(ids)))
    assert torch.equal(hash_table.find(ids), torch.arange(len(ids)))
    assert not (hash_table.find(ids + 1) >= 0).any()
    half = torch.from_numpy(generator.permutation(len(ids))[:10_000])
    assert torch.equal(hash_table.erase(ids[half]), half)
    kept = torch.ones(len(ids), dtype=torch.bool).index_fill(0, half, False)
    assert torch.equal(hash_table.find(ids), torch.where(kept, torch.arange(len(ids)), -1))


def test_a_large_index_takes_memory_a_large_page_at_a_time() -> None:
    memory, call = numba_index._Memory(1 << 28), 6 * numba_index.MOST_REGIONS
    memory.chunks((1 << 28) // numba_index.CHUNK_BYTES)
    for number in range(50):
        before = memory.num_bytes
        memory.chunks(call)
        assert memory.num_bytes - before <= LARGE_PAGE_BYTES
        assert memory.num_bytes >= (1 << 28) + (number + 1) * call * numba_index.CHUNK_BYTES


def test_import_gives_the_table_that_was_exported() -> None:
    one, other = HashTable(), HashTable()
    one.find_or_insert(ids_of(range(2_000)))
    one.erase(ids_of([3, 1_500, 77]))
    other.find_or_insert(ids_of([1, 2, 3]))
    other.import_(*one.export())
    for mine, its in zip(one.export(), other.export(), strict=True):
        assert torch.equal(mine, its)
    new = ids_of([9_000, 9_001, 9_002, 9_003])
    assert torch.equal(one.find_or_insert(new).rows, other.find_or_insert(new).rows)


@pytest.mark.parametrize(
    ("ids", "rows", "free", "message"),
    [
        ([1, 1], [0, 1], [], r"ids\[1\]=1 stands there twice"),
        ([1, 2], [0, 2], [], r"rows lie in \[0, 2\]; wanted 0 to 1, once each"),
        ([1, 2], [0, 0], [2], r"row 1 is missing; wanted 0 to 2, once each"),
        ([1, 2], [0], [], r"ids has 2 elements, rows has 1; they must be equal"),
        (range(9), range(9), [], r"there are 9 ids; wanted at most max_rows=8"),
    ],
)
def test_an_import_that_is_no_table_is_refused_and_changes_nothing(
    ids: list[int], rows: list[int], free: list[int], message: str
) -> None:
    hash_table = HashTable(max_rows=8)
    hash_table.find_or_insert(ids_of([5]))
    with pytest.raises(ValueError, match=message):
        hash_table.import_(ids_of(ids), ids_of(rows), ids_of(free))
    assert hash_table.find(ids_of([5])).tolist() == [0]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(2), r"ids is torch.float32 of the shape \(2,\); wanted int64 \(N,\)"),
        (torch.zeros(2, 1, dtype=torch.int64), r"ids is torch.int64 of the shape \(2, 1\); wanted int64 \(N,\)"),
    ],
)
def test_what_are_no_ids_is_refused(ids: torch.Tensor, message: str) -> None:
    for call in (HashTable().find, HashTable().find_or_insert, HashTable().erase):
        with pytest.raises(ValueError, match=message):
            call(ids)


def test_without_numba_the_table_has_sorted_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(index.new_index(0, torch.device("cpu")), NumbaIndex)
    monkeypatch.setattr(index, "has_numba", lambda: False)
    assert isinstance(index.new_index(0, torch.device("cpu")), SortedIndex)


def test_who_claims_says_which_new_ids_get_rows() -> None:
    hash_table = HashTable(max_rows=3)
    hash_table.find_or_insert(ids_of([5]))
    claim = hash_table.claim(ids_of([7, 5, 8, 7, 9, 8]))
    assert claim.firsts.tolist() == [0, 2, 4]
    inserted = hash_table.settle(claim, torch.tensor([True, False, True]))
    assert inserted.rows.tolist() == [1, 0, -1, 1, 2, -1]
    assert (inserted.new.tolist(), hash_table.num_refused) == ([0, 4], 0)
    assert hash_table.find(ids_of([7, 8, 9])).tolist() == [1, -1, 2]


def test_room_may_be_made_between_claim_and_settlement() -> None:
    hash_table = HashTable(max_rows=2)
    hash_table.find_or_insert(ids_of([5, 6]))
    claim = hash_table.claim(ids_of([6, 7]))
    hash_table.erase(ids_of([5]))
    assert hash_table.settle(claim).rows.tolist() == [1, 0]


def test_a_claim_that_is_not_settled_is_forgotten() -> None:
    hash_table = HashTable()
    claim = hash_table.claim(ids_of([7]))
    assert hash_table.find(ids_of([7])).tolist() == [-1]
    with pytest.raises(ValueError, match="the claim is not open: it was settled, or another call came between"):
        hash_table.settle(claim)
    hash_table.claim(ids_of([7, 8]))
    assert hash_table.find_or_insert(ids_of([8, 7])).rows.tolist() == [0, 1]


def test_a_choice_that_does_not_fit_the_claim_is_refused() -> None:
    hash_table = HashTable()
    claim = hash_table.claim(ids_of([7, 8]))
    with pytest.raises(ValueError, match=r"kept is torch.bool of the shape \(1,\); wanted bool \(2,\)"):
        hash_table.settle(claim, torch.tensor([True]))
    assert hash_table.settle(claim).rows.tolist() == [0, 1]


@pytest.mark.parametrize("threads", [1, 2, 5, 8])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    generator, before = np.random.default_rng(0), torch.get_num_threads()
    calls = [torch.from_numpy(generator.zipf(1.1, 30_000)) for _ in range(4)]
    tables = HashTable(), HashTable()
    try:
        for hash_table, count in zip(tables, (1, threads), strict=True):
            torch.set_num_threads(count)
            for number, ids in enumerate(calls):
                hash_table.find_or_insert(ids)
                if number == 2:
                    hash_table.erase(ids[::7])
        for mine, its in zip(tables[0].export(), tables[1].export(), strict=True):
            assert torch.equal(mine, its)
        assert torch.equal(tables[0].find(calls[0]), tables[1].find(calls[0]))
    finally:
        torch.set_num_threads(before)


def test_many_threads_may_look_up_at_a_time() -> None:
    hash_table, ids = HashTable(), torch.arange(20_000)
    hash_table.find_or_insert(ids)
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(hash_table.find, [ids] * 64):
            assert torch.equal(rows, ids)


def test_what_was_erased_leaves_no_detour() -> None:
    """A search ends at the first bucket that nobody went past."""
    hash_table = HashTable()
    if not isinstance(hash_table._index, NumbaIndex):
        pytest.skip("sorted runs have no buckets")
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 2**62, 30_000))
    hash_table.find_or_insert(ids)
    hash_table.erase(ids)
    slabs = hash_table._index._memory._slabs
    starts = [-slab.ctypes.data % kernels.BUCKET_BYTES for slab in slabs]
    for slab, start in zip(slabs, starts, strict=True):
        buckets = slab[start : start + (len(slab) - start) // 64 * 64].view(np.int32).reshape(-1, 16)
        assert not buckets[:, kernels.FIELDS_AT // 4 :].any()  # fields, and how many went past


def colliding(count: int) -> torch.Tensor:
    """Ids whose hashes share their upper 40 bits."""
    return unmixed(signed(0xABCDEF1234 << 24) + torch.arange(count))


@pytest.mark.parametrize("threads", [1, 4])
def test_ids_that_were_made_to_collide_are_refused_and_nothing_changes(
    threads: int, request: pytest.FixtureRequest
) -> None:
    if "numba" not in request.node.name:
        pytest.skip("sorted runs have no hashes")
    hash_table, before = HashTable(), torch.get_num_threads()
    kept = torch.arange(3_000)
    hash_table.find_or_insert(kept)
    try:
        torch.set_num_threads(threads)
        with pytest.raises(RuntimeError, match="ids share more bits of their hash than"):
            hash_table.find_or_insert(torch.cat([torch.arange(50_000, 51_000), colliding(9_000)]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(hash_table.find(kept), kept)
    assert (len(hash_table), hash_table.num_rows) == (3_000, 3_000)
    assert not (hash_table.find(torch.arange(50_000, 51_000)) >= 0).any()
    assert hash_table.find_or_insert(colliding(500)).rows.tolist() == list(range(3_000, 3_500))


class Machine(RuleBasedStateMachine):
    """Any sequence of operations gives the same map as a dict."""

    make: Callable[[int, torch.device], Any]

    @initialize(max_rows=st.sampled_from([None, 10, 30]))
    def start(self, max_rows: int | None) -> None:
        self.table, self.truth = HashTable(max_rows=max_rows), HashTableReference(max_rows)
        self.table._index = type(self).make(0, torch.device("cpu"))

    @rule(ids=IDS)
    def find(self, ids: list[int]) -> None:
        assert self.table.find(ids_of(ids)).tolist() == self.truth.find(ids)

    @rule(ids=IDS)
    def find_or_insert(self, ids: list[int]) -> None:
        inserted, (rows, new) = self.table.find_or_insert(ids_of(ids)), self.truth.find_or_insert(ids)
        assert (inserted.rows.tolist(), inserted.new.tolist()) == (rows, new)

    @rule(start=st.integers(0, 5_000), count=st.integers(500, 3_000))
    def insert_many(self, start: int, count: int) -> None:
        self.find_or_insert(list(range(start, start + count)))

    @rule(ids=IDS)
    def erase(self, ids: list[int]) -> None:
        assert self.table.erase(ids_of(ids)).tolist() == self.truth.erase(ids)

    @rule(start=st.integers(0, 5_000), count=st.integers(500, 3_000))
    def erase_many(self, start: int, count: int) -> None:
        self.erase(list(range(start, start + count)))

    @rule()
    def reload(self) -> None:
        exported = self.table.export()
        self.table.import_(*exported)
        assert all(torch.equal(a, b) for a, b in zip(exported, self.table.export(), strict=True))

    @invariant()
    def is_the_same(self) -> None:
        ids, rows, free = self.table.export()
        assert list(zip(ids.tolist(), rows.tolist(), strict=True)) == self.truth.export()
        assert (len(self.table), free.tolist()) == (len(self.truth.rows), self.truth.free)
        assert self.table.num_refused == self.truth.num_refused


@pytest.mark.parametrize("index", list(INDEXES))
def test_any_operations_give_the_map_of_a_dict(index: str) -> None:
    machine: Any = type("Of", (Machine,), {"make": staticmethod(INDEXES[index])})
    machine.TestCase.settings = settings(deadline=None, max_examples=30, stateful_step_count=20)
    machine.TestCase("runTest").runTest()

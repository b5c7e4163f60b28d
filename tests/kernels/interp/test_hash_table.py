"""The hash table on the index of the Triton kernels, with small regions, against a dict."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from recsys.kernels.hash_table import HashTable, HashTableReference, index, table, triton_index
from recsys.kernels.hash_table.sorted_index import SortedIndex
from recsys.kernels.hash_table.triton_index import BUCKET_BYTES, CODE_BITS, SLOTS, TritonIndex
from recsys.kernels.mixing import mixed, unmixed

CPU = torch.device("cpu")
UNIT = 4  # buckets: regions of 40 and 60 slots
LARGEST = 3 * UNIT * SLOTS
EXTREMES = [0, -1, 1, 2**63 - 1, -(2**63)]
IDS = st.lists(st.one_of(st.integers(0, 40), st.sampled_from(EXTREMES)), max_size=60)


@pytest.fixture(autouse=True)
def _small_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "new_index", lambda expected, device: TritonIndex(expected, device, unit=UNIT))


def ids_of(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def random_ids(count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count))


def index_of(hash_table: HashTable) -> TritonIndex:
    found = hash_table._index
    assert isinstance(found, TritonIndex)
    return found


def buckets_of(found: TritonIndex) -> tuple[Tensor, Tensor]:
    """(B, 16) words of every bucket of every region, and (B, 2): where its region begins, and how many it has."""
    begins, sizes = found._places >> CODE_BITS, found._units * UNIT
    region = torch.repeat_interleave(sizes)
    place = torch.arange(len(region)) - (sizes.cumsum(0) - sizes)[region]
    memory = found._memory
    slabs = {(slab.data_ptr() - memory.base.data_ptr()) // BUCKET_BYTES: slab.view(-1, 16) for slab in memory._slabs}
    words = []
    for bucket in (begins[region] + place).tolist():
        first = max(begin for begin in slabs if begin <= bucket)
        words.append(slabs[first][bucket - first])
    return torch.stack(words), torch.stack([region, place], 1)


def check_structure(found: TritonIndex) -> None:
    """Every id is where a search gets to, each bucket knows how many went past it, each region how many it holds."""
    words, where = buckets_of(found)
    low, high, fields = (words[:, part * SLOTS : (part + 1) * SLOTS].long() for part in range(3))
    ids, taken = (high << 32) | (low & 0xFFFFFFFF), fields != 0
    h = mixed(ids)
    regions, sizes = where[:, :1].expand_as(ids), found._units * UNIT
    own = ((h & 0xFFFFFFFF) * sizes[regions]) >> 32
    passed = torch.zeros(len(sizes), 3 * UNIT, dtype=torch.int64)
    for region, first, at in zip(
        regions[taken].tolist(), own[taken].tolist(), where[:, 1:].expand_as(ids)[taken].tolist(), strict=True
    ):
        size = int(sizes[region])
        for step in range((at - first) % size):
            passed[region, (first + step) % size] += 1
    assert torch.equal(passed[where[:, 0], where[:, 1]], words[:, 15].long())
    assert torch.equal(torch.bincount(regions[taken], minlength=len(sizes)), found._counts)
    prefixes = (h >> (64 - found._depth)) & ((1 << found._depth) - 1) if found._depth else torch.zeros_like(h)
    assert torch.equal(found._regions[prefixes[taken]], regions[taken])


def test_a_table_on_a_cpu_takes_this_index_where_triton_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(index.new_index(0, CPU), TritonIndex)
    monkeypatch.setenv("RECSYS_KERNELS", "torch")
    monkeypatch.setattr(index, "has_numba", lambda: False)
    assert isinstance(index.new_index(0, CPU), SortedIndex)


@pytest.mark.parametrize("sizes", [[1, 500, 3, 200], [700], [41, 41, 41, 41, 41]])
def test_ids_come_the_table_grows_and_none_is_lost(sizes: list[int]) -> None:
    ids, hash_table = random_ids(sum(sizes)), HashTable()
    for part in torch.split(ids, sizes):
        given = hash_table.find_or_insert(torch.cat([part, part[:7]]))
        assert given.new.tolist() == list(range(len(part)))
        check_structure(index_of(hash_table))
    assert torch.equal(hash_table.find(ids), torch.arange(len(ids)))
    assert (hash_table.find(random_ids(300, seed=1)) == -1).all()
    assert len(index_of(hash_table)) == len(ids)
    assert len(ids) / 0.88 <= index_of(hash_table).num_slots < 4 * len(ids) + 100


def test_what_is_erased_leaves_no_trace_in_the_buckets() -> None:
    ids, hash_table = random_ids(600), HashTable()
    hash_table.find_or_insert(ids)
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(ids)))
    first, rest = order[:400], order[400:]
    assert torch.equal(hash_table.erase(torch.cat([ids[first], ids[first[:9]]]))[:400], first)
    check_structure(index_of(hash_table))
    assert torch.equal(hash_table.find(ids[rest]), rest)
    assert (hash_table.find(ids[first]) == -1).all()
    hash_table.erase(ids)
    words, _ = buckets_of(index_of(hash_table))
    assert not words[:, 2 * SLOTS :].any()
    assert hash_table.find_or_insert(ids[:3]).rows.tolist() == rest.sort().values.flip(0)[:3].tolist()


def test_regions_may_be_filled_to_the_last_slot() -> None:
    """Then every bucket has been gone past, and a search for what is not there goes round once."""
    index_, ids = TritonIndex(0, CPU, unit=UNIT, full=(1.0, 1.0)), random_ids(2 * UNIT * SLOTS)
    places = torch.arange(len(ids))
    index_.settle(ids, -2 - places, places, places)
    assert (len(index_), index_.num_slots) == (len(ids), len(ids))
    check_structure(index_)
    assert torch.equal(index_.find(ids), places)
    assert (index_.find(ids + 1) == -1).all()
    assert torch.equal(index_.erase(ids), places)
    assert not buckets_of(index_)[0][:, 2 * SLOTS :].any()


def test_what_a_full_region_leaves_is_used_again() -> None:
    hash_table, generator = HashTable(), np.random.default_rng(0)
    for _ in range(3):
        ids = torch.from_numpy(generator.integers(0, 2**62, 300))
        hash_table.find_or_insert(ids)
        hash_table.erase(ids)
    hash_table.find_or_insert(random_ids(400))
    held = index_of(hash_table)
    free = sum(len(regions) * units for units, regions in held._memory._free.items()) * UNIT
    lying = int(held._units.sum()) * UNIT
    assert (len(held._memory._slabs), lying + free) == (1, held._memory._at), "all that was given lies or is free"
    begins = torch.cat([held._places, *held._memory._free.values()]) >> CODE_BITS
    assert len(torch.unique(begins)) == len(begins), "no two regions lie in one place"


def test_ids_of_one_bucket_may_fill_a_region() -> None:
    """The last one lies a whole round behind its own bucket."""
    own = 3
    ids = unmixed((own << 29) + (1 << 28) + torch.arange(2 * UNIT * SLOTS))
    index_, places = TritonIndex(0, CPU, unit=UNIT, full=(1.0, 1.0)), torch.arange(len(ids))
    index_.settle(ids, -2 - places, places, places)
    check_structure(index_)
    assert buckets_of(index_)[0][:, 15].tolist() == [10, 5, 0, 35, 30, 25, 20, 15]
    assert torch.equal(index_.find(ids), places)
    assert (index_.find(ids + 1) == -1).all()


@pytest.mark.parametrize("shift", [0, 32])
def test_ids_that_go_and_come_back_elsewhere_are_told_from_what_they_left(shift: int) -> None:
    """Ids that differ in one half alone; a slot that was left still holds its old id."""
    ids = torch.arange(30) << shift
    index_, places, generator = TritonIndex(0, CPU, unit=UNIT), torch.arange(30), np.random.default_rng(0)
    index_.settle(ids, -2 - places, places, places)
    for _ in range(8):
        gone = torch.from_numpy(generator.permutation(30)[:20])
        assert torch.equal(index_.erase(ids[gone]), gone)
        check_structure(index_)
        assert torch.equal(index_.find(ids), torch.where(torch.isin(places, gone), -1, places))
        for part in torch.split(gone, 10):
            index_.settle(ids[part], -2 - places[: len(part)], places[: len(part)], part)
        assert torch.equal(index_.find(ids), places)


def test_the_layout_does_not_depend_on_the_order_in_the_call() -> None:
    ids = random_ids(300)
    layouts = []
    for given in (ids, ids.flip(0)):
        index_ = TritonIndex(1000, CPU, unit=UNIT)
        places = torch.arange(len(ids))
        index_.settle(given, -2 - places, places, places)
        layouts.append(buckets_of(index_)[0][:, : 2 * SLOTS])
    assert torch.equal(*layouts)


def test_ids_made_to_collide_are_refused_by_name_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids whose hashes begin with the same bits, by the finaliser turned round."""
    monkeypatch.setattr(triton_index, "MAX_DEPTH", 10)
    hashes = torch.arange(LARGEST)
    ids, others = unmixed(hashes), random_ids(200)
    assert torch.equal(mixed(ids), hashes)
    index_, places = TritonIndex(0, CPU, unit=UNIT), torch.arange(LARGEST)
    index_.settle(others, -2 - torch.arange(200), torch.arange(200), torch.arange(200))
    with pytest.raises(RuntimeError, match=r"the hashes of \d+ ids begin with the same 10 bits"):
        index_.settle(ids, -2 - places, places, 200 + places)
    check_structure(index_)
    assert torch.equal(index_.find(others), torch.arange(200))
    assert (index_.find(ids) == -1).all()


class Machine(RuleBasedStateMachine):
    """Any sequence of operations gives the same map as a dict."""

    @initialize(max_rows=st.sampled_from([None, 30]))
    def start(self, max_rows: int | None) -> None:
        self.table, self.truth = HashTable(max_rows=max_rows), HashTableReference(max_rows)

    @rule(ids=IDS)
    def find_or_insert(self, ids: list[int]) -> None:
        inserted, (rows, new) = self.table.find_or_insert(ids_of(ids)), self.truth.find_or_insert(ids)
        assert (inserted.rows.tolist(), inserted.new.tolist()) == (rows, new)

    @rule(start=st.integers(0, 300), count=st.integers(20, 200))
    def insert_many(self, start: int, count: int) -> None:
        self.find_or_insert(list(range(start, start + count)))

    @rule(ids=IDS)
    def erase(self, ids: list[int]) -> None:
        assert self.table.erase(ids_of(ids)).tolist() == self.truth.erase(ids)

    @rule(start=st.integers(0, 300), count=st.integers(20, 200))
    def erase_many(self, start: int, count: int) -> None:
        self.erase(list(range(start, start + count)))

    @rule(kept=st.booleans())
    def claim_and_settle(self, kept: bool) -> None:
        ids = list(range(290, 300))
        claim = self.table.claim(ids_of(ids))
        if kept:
            assert self.table.settle(claim).rows.tolist() == self.truth.find_or_insert(ids)[0]

    @rule(ids=IDS)
    def find(self, ids: list[int]) -> None:
        assert self.table.find(ids_of(ids)).tolist() == self.truth.find(ids)

    @rule()
    def reload(self) -> None:
        self.table.import_(*self.table.export())

    @invariant()
    def is_the_same(self) -> None:
        ids, rows, free = self.table.export()
        assert list(zip(ids.tolist(), rows.tolist(), strict=True)) == self.truth.export()
        assert (free.tolist(), self.table.num_refused) == (self.truth.free, self.truth.num_refused)


def test_any_operations_give_the_map_of_a_dict() -> None:
    machine: Any = Machine
    machine.TestCase.settings = settings(deadline=None, max_examples=8, stateful_step_count=12, derandomize=True)
    machine.TestCase("runTest").runTest()

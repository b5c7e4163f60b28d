"""Bounded rows against a dict a bucket, one id at a time."""

from dataclasses import dataclass, field
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.models.embedding_table.bounded_rows import BoundedRows, Eviction, RowState, bucket_of

CPU = torch.device("cpu")
ODD_IDS = [0, -1, 1, -(2**63), 2**63 - 1, 2**62, -7, 3, 5, 6, 11, 10**18]


@dataclass
class Known:
    row: int
    last_use: int
    count: int


@dataclass
class Reference:
    """A bucket's rows as the docstring of BoundedRows tells them."""

    size: int
    eviction: str
    known: dict[int, Known] = field(default_factory=dict)
    shared: int = 0

    def call(self, ids: list[int], call: int) -> tuple[list[int], list[int]]:
        new = [id_ for id_ in dict.fromkeys(ids) if id_ not in self.known]
        for id_ in set(ids) - set(new):
            self.known[id_].last_use = call
        free = list(range(len(self.known), self.size - 1))[: len(new)]
        order = sorted((known.count * (self.eviction == "lfu"), known.last_use, known.row, id_)
                       for id_, known in self.known.items() if known.last_use < call)  # fmt: skip
        gone = [] if self.eviction == "none" else order[: len(new) - len(free)]
        changed = [row for *_, row, _ in gone]
        for *_, id_ in gone:
            del self.known[id_]
        self.known |= {id_: Known(row, call, 0) for id_, row in zip(new, free + changed, strict=False)}
        found = []
        for id_ in ids:
            if id_ in self.known:
                self.known[id_].count += 1
            self.shared += id_ not in self.known
            found.append(self.known[id_].row if id_ in self.known else self.size - 1)
        return found, changed


@settings(max_examples=150, deadline=None)
@given(
    calls=st.lists(st.lists(st.sampled_from(ODD_IDS + list(range(20, 40))), max_size=12), max_size=12),
    size=st.integers(2, 9),
    buckets=st.sampled_from([1, 2, 3, 4]),
    eviction=st.sampled_from(get_args(Eviction)),
)
def test_rows_evictions_and_counts_are_those_of_the_reference(
    calls: list[list[int]], size: int, buckets: int, eviction: Eviction
) -> None:
    state = RowState.empty(size * buckets, CPU)
    table = BoundedRows(state, (0, buckets, buckets), eviction)
    references = [Reference(size, eviction) for _ in range(buckets)]
    for number, ids in enumerate(calls, start=1):
        rows, changed = table.find_or_insert(torch.tensor(ids, dtype=torch.int64), number)
        wanted, left = torch.zeros(len(ids), dtype=torch.int64), []
        for bucket, reference in enumerate(references):
            places = [place for place, id_ in enumerate(ids) if id_ % 2**64 % buckets == bucket]
            found, gone = reference.call([ids[place] for place in places], number)
            wanted[places] = bucket * size + torch.tensor(found, dtype=torch.int64)
            left += [bucket * size + row for row in gone]
        assert rows.tolist() == wanted.tolist()
        assert sorted(changed.tolist()) == sorted(left)
        if number % 3 == 0:  # what stands in the tensors is all there is to know
            table = BoundedRows(state, (0, buckets, buckets), eviction)
    for bucket, reference in enumerate(references):
        assert int(state.counts[(bucket + 1) * size - 1]) == reference.shared
    assert len(table) == sum(len(reference.known) for reference in references)
    assert table.room == buckets * (size - 1) - len(table)


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("spread", [500, 900, 3000])
def test_a_part_of_many_rows_throws_out_as_a_sort_of_all_would(eviction: Eviction, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    state = RowState.empty(401, CPU)
    table, reference = BoundedRows(state, (0, 1, 1), eviction), Reference(401, eviction)
    for number in range(1, 200):
        ids = (spread * torch.rand(int(torch.randint(1, 90, (), generator=generator)), generator=generator) ** 2).long()
        rows, changed = table.find_or_insert(ids, number)
        found, gone = reference.call(ids.tolist(), number)
        assert rows.tolist() == found
        assert changed.tolist() == sorted(gone)


def test_an_unknown_id_shares_the_last_row_of_its_bucket_and_changes_nothing() -> None:
    table = BoundedRows(RowState.empty(8, CPU), (0, 2, 2), "lru")
    table.find_or_insert(torch.tensor([4, 7]), 1)
    assert table.find(torch.tensor([4, 6, 7, 9, 4])).tolist() == [0, 3, 4, 7, 0]
    assert len(table) == 2


def test_buckets_that_lie_elsewhere_give_the_same_rows() -> None:
    whole = BoundedRows(RowState.empty(12, CPU), (0, 4, 4), "lru")
    half = BoundedRows(RowState.empty(6, CPU), (2, 4, 4), "lru")
    ids = torch.tensor([2, 3, 6, 7, 10, -1, -2])  # of the buckets 2 and 3
    rows, _ = whole.find_or_insert(ids, 1)
    part, _ = half.find_or_insert(ids, 1)
    assert (part + 6).tolist() == rows.tolist()


@pytest.mark.parametrize("buckets", [1, 2, 3, 6, 7, 1024])
def test_a_bucket_is_the_unsigned_id_modulo_buckets(buckets: int) -> None:
    found = bucket_of(torch.tensor(ODD_IDS), buckets)
    assert found.tolist() == [id_ % 2**64 % buckets for id_ in ODD_IDS]


def state_of(ids: list[int], counts: list[int]) -> RowState:
    return RowState(torch.tensor(ids), torch.tensor([int(count > 0) for count in counts]), torch.tensor(counts))


@pytest.mark.parametrize(
    ("state", "line"),
    [
        (state_of([4, 0, 0, 0], [-1, 0, 0, 0]), "row 0 was asked for -1 times"),
        (state_of([0, 4, 0, 0], [0, 2, 0, 0]), "row 1 is free before one that is taken|row 0 is free before one"),
        (state_of([4, 5, 4, 0], [1, 1, 1, 0]), r"id 4 has the rows 0 and 2; wanted one"),
    ],
)
def test_a_state_that_no_table_has_is_refused(state: RowState, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        BoundedRows(state, (0, 1, 1), "lru")


def test_an_id_in_a_foreign_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="row 0 of bucket 0 holds the id 5 of bucket 1"):
        BoundedRows(state_of([5, 0, 0, 0], [1, 0, 0, 0]), (0, 2, 2), "lru")


@pytest.mark.parametrize(("rows", "buckets"), [(7, 2), (4, 4), (4, 0)])
def test_rows_that_are_no_equal_buckets_are_refused(rows: int, buckets: int) -> None:
    with pytest.raises(ValueError, match=f"{rows} rows in {buckets} buckets"):
        BoundedRows(RowState.empty(rows, CPU), (0, buckets, buckets), "lru")

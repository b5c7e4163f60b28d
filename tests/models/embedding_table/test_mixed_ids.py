"""Mixed ids: one to one, and spread over all buckets."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.models.embedding_table.bounded_rows import bucket_of
from recsys.models.embedding_table.mixed_ids import mixed, unmixed


def splitmix(number: int) -> int:
    """The published mix in whole numbers."""
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ number >> 27) * 0x94D049BB133111EB % 2**64
    return number ^ number >> 31


@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_ids_are_mixed_as_published_and_come_back(ids: list[int]) -> None:
    found = mixed(torch.tensor(ids, dtype=torch.int64))
    assert [id_ % 2**64 for id_ in found.tolist()] == [splitmix(id_ % 2**64) for id_ in ids]
    assert unmixed(found).tolist() == ids


def test_ids_that_end_in_zeros_fall_into_all_buckets_alike() -> None:
    ids = torch.arange(80_000) << 22
    assert bucket_of(ids, 8).unique().tolist() == [0]  # type: ignore[no-untyped-call]
    sizes = torch.bincount(bucket_of(mixed(ids), 8))
    assert len(sizes) == 8
    assert (sizes - 10_000).abs().max() < 5 * 10_000**0.5

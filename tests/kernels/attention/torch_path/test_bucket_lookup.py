import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.kernels.attention.bias import time_thresholds
from recsys.kernels.attention.torch_path.bucket_lookup import BucketLookup

LAST = 2**31 - 1


def _buckets(thresholds: Tensor, ts_q: Tensor, ts_k: Tensor) -> tuple[Tensor, Tensor]:
    """(queries, keys): found, and by definition."""
    found = BucketLookup.of(thresholds, (ts_q, ts_k)).find(ts_q[None], ts_k[None])[0]
    gaps = (ts_q[:, None].long() - ts_k[None].long()).abs()
    return found, (thresholds <= gaps[..., None]).sum(-1)


@pytest.mark.parametrize("num_buckets", [1, 2, 17, 64, 150])
@pytest.mark.parametrize("rule", ["log2x1", "log2x2", "log2x4", "hstu"])
def test_a_bucket_is_right_on_both_sides_of_each_threshold(rule: str, num_buckets: int) -> None:
    thresholds = torch.tensor(time_thresholds(rule, num_buckets), dtype=torch.int64)
    near = (thresholds[thresholds < LAST, None] + torch.arange(-2, 3)).flatten().clamp(0, LAST)
    ts = torch.cat([near, torch.tensor([0, 1, 2, 3, 2**24, 2**24 + 1, LAST - 1, LAST])]).int()
    for last in (LAST - 1, LAST):  # gaps in int32, and where they need more
        found, expected = _buckets(thresholds, ts.clamp(max=last), torch.zeros(1, dtype=torch.int32))
        assert torch.equal(found, expected)


@settings(max_examples=100, deadline=None)
@given(
    thresholds=st.lists(st.integers(-5, 50) | st.integers(0, 2**40), max_size=12),
    times=st.lists(st.integers(-50, 50) | st.integers(-(2**31), LAST), min_size=1, max_size=8),
)
def test_any_thresholds_and_times_find_the_bucket_of_the_definition(thresholds: list[int], times: list[int]) -> None:
    ts = torch.tensor(times, dtype=torch.int32)
    found, expected = _buckets(torch.tensor(sorted(thresholds), dtype=torch.int64), ts, ts)
    assert torch.equal(found, expected)


def test_thresholds_too_close_for_a_cell_are_searched() -> None:
    thresholds = torch.tensor([10**6, 10**6 + 1, 10**6 + 3], dtype=torch.int64)
    ts = torch.arange(10**6 - 2, 10**6 + 6, dtype=torch.int32)
    zero = torch.zeros(1, dtype=torch.int32)
    assert BucketLookup.of(thresholds, (ts, zero)).shift is None
    found, expected = _buckets(thresholds, ts, zero)
    assert torch.equal(found, expected)


@settings(max_examples=100, deadline=None)
@given(ts_q=st.lists(st.integers(0, 3_000), min_size=1, max_size=3), start=st.integers(0, 3_000))
def test_the_only_bucket_is_that_of_all_gaps(ts_q: list[int], start: int) -> None:
    thresholds = torch.tensor(time_thresholds("log2x1", 20), dtype=torch.int64)
    queries, keys = torch.tensor(ts_q, dtype=torch.int32), torch.arange(start, start + 20, dtype=torch.int32)
    lookup = BucketLookup.of(thresholds, (queries, keys))
    only, found = lookup.only_bucket(queries, keys), lookup.find(queries[None], keys[None])
    if only is None:
        low = max(0, min(ts_q) - int(keys.max()), start - max(ts_q))
        high = max(max(ts_q) - start, int(keys.max()) - min(ts_q))
        assert (thresholds <= low).sum() != (thresholds <= high).sum()
    else:
        assert (found == only).all()

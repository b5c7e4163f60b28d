"""Regions against the definition of the masks: every pair that is seen lies in one region, and no other pair in any."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.kernels.attention.torch_path.regions import regions
from recsys.kernels.attention.visibility import Visibility
from recsys.kernels.jagged import JaggedMeta

WINDOWS = [(-1, -1), (0, 0), (2, 3), (-1, 2), (3, -1), (40, 0), (300, 300)]


def _times_seen(
    lengths_q: list[int], lengths_k: list[int], visibility: Visibility, targets: np.ndarray | None
) -> list[np.ndarray]:
    """(nq, nk) of each sequence: how many regions hold the pair and let it be seen."""
    meta_q = JaggedMeta.from_lengths(lengths_q)
    meta_k = meta_q if lengths_k == lengths_q else JaggedMeta.from_lengths(lengths_k)
    seen = [np.zeros((nq, nk), dtype=int) for nq, nk in zip(lengths_q, lengths_k, strict=True)]
    for region in regions(meta_q, meta_k, visibility, targets):
        for i, b in enumerate(region.items.sequence):
            queries = region.items.first_q[i] + np.arange(region.items.len_q[i])
            keys = region.items.first_k[i] + np.arange(region.items.len_k[i])
            distance = (queries + region.items.shift[i])[:, None] - keys
            inside = (region.left < 0) | (distance <= region.left)
            inside &= (region.right < 0) | (distance >= -region.right)
            assert inside.any(axis=1).all(), "an item holds a query that sees none of its keys"
            seen[b][np.ix_(queries, keys)] += inside
    return seen


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(), causal=st.booleans(), window=st.sampled_from(WINDOWS), num_global=st.sampled_from([0, 1, 3, 300])
)
def test_every_pair_that_is_seen_lies_in_one_region(
    data: st.DataObject, causal: bool, window: tuple[int, int], num_global: int
) -> None:
    length = st.sampled_from([0, 1, 2, 5, 17, 40, 300])
    lengths_k = data.draw(st.lists(length, min_size=1, max_size=3))
    lengths_q = lengths_k if data.draw(st.booleans()) else [data.draw(length) for _ in lengths_k]
    targets, group = None, 1
    if data.draw(st.booleans()) and (causal or window == (-1, -1)):
        targets = np.array([data.draw(st.integers(0, n)) for n in lengths_k], dtype=np.int64)
        group = data.draw(st.sampled_from([1, 2, 7, 500]))
    visibility = Visibility(causal=causal, window=window, num_global=num_global, target_group=group)
    for b, seen in enumerate(_times_seen(lengths_q, lengths_k, visibility, targets)):
        mask = visibility.mask(lengths_q[b], lengths_k[b], 0 if targets is None else int(targets[b]))
        np.testing.assert_array_equal(seen, mask.numpy())


@pytest.mark.parametrize("causal", [False, True])
def test_targets_cost_their_own_cells_alone(causal: bool) -> None:
    meta = JaggedMeta.from_lengths([1_000])
    found = regions(meta, meta, Visibility(causal=causal), np.array([100]))
    cells = sum(int((region.items.len_q * region.items.len_k).sum()) for region in found)
    assert cells == 900 * 900 + 100 * 900 + 100


def test_global_tokens_without_a_window_change_nothing() -> None:
    meta = JaggedMeta.from_lengths([30, 4])
    for causal in (False, True):
        plain, same = (regions(meta, meta, Visibility(causal=causal, num_global=g), None) for g in (0, 7))
        assert len(plain) == len(same) == 1
        assert np.array_equal(plain[0].items.len_k, same[0].items.len_k)

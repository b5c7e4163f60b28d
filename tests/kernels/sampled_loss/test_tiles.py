import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.kernels.sampled_loss import tiles


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 40), max_size=12),
    K=st.sampled_from([0, 1, 7, 300]),
    cache=st.sampled_from([1, 5_000, 100_000, 1 << 24]),
)
def test_tiles_hold_every_row_once_and_stay_in_the_cache(counts: list[int], K: int, cache: int) -> None:
    groups = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(0))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CACHE_BYTES", cache)
        planned = list(tiles.plan_tiles(groups, K, 8, 4))
    seen = []
    for tile in planned:
        is_row = tile.rows < len(groups)
        seen += tile.rows[is_row].tolist()
        g, n = tile.rows.shape
        assert is_row.sum(1).min() * 2 >= n
        assert torch.equal(groups[tile.rows[is_row]], tile.lists[:, None].expand(g, n)[is_row])
        assert n == 1 or g * n * K * 4 <= cache
        assert g == 1 or g * (n + 16) * K * 4 <= cache
    assert sorted(seen) == list(range(len(groups)))

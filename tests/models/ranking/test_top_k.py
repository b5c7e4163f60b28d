import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.models.ranking.top_k import top_k


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 4),
    columns=st.sampled_from([1, 2, 5, 17, 64]),
    k=st.sampled_from([1, 2, 5, 17, 100]),
    levels=st.sampled_from([1, 2, 4, 1000]),
    seed=st.integers(0, 999),
)
def test_it_equals_a_stable_sort(rows: int, columns: int, k: int, levels: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, levels, (rows, columns)).astype(np.float32)
    scores[generator.random((rows, columns)) < 0.2] = -np.inf
    indices, values = top_k(torch.from_numpy(scores), k)
    for row in range(rows):
        order = np.lexsort((np.arange(columns), -scores[row]))[:k]
        finite = np.isfinite(scores[row][order])
        assert values[row].tolist() == scores[row][order].tolist()
        assert indices[row].numpy()[finite].tolist() == order[finite].tolist()


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        top_k(torch.zeros(1, 3), 0)

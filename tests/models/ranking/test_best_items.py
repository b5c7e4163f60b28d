import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.models.ranking.best_items import best_items
from recsys.models.ranking.screen import Cells, ScreenedItems
from recsys.models.ranking.top_k import top_k


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    V=st.sampled_from([1, 5, 31, 33, 200, 900]),
    k=st.integers(1, 12),
    kind=st.sampled_from(["plain", "grid", "near"]),
)
def test_proven_lists_are_those_of_all_scores(seed: int, V: int, k: int, kind: str) -> None:
    g = torch.Generator().manual_seed(seed)
    vectors, states = torch.randn(V + 1, 6, generator=g), torch.randn(4, 6, generator=g)
    if kind == "grid":
        vectors, states = vectors.round(), states.round()
    elif kind == "near":
        vectors = vectors[:1] + 1e-7 * vectors
    is_candidate = torch.rand(V + 1, generator=g) < 0.9
    hidden = Cells(torch.arange(4), torch.randint(1, V + 1, (4,), generator=g))
    found, is_proven = best_items(ScreenedItems(vectors, is_candidate, block_items=64), states, k, hidden)
    scores = (states.double() @ vectors.double().T).float()
    scores[:, ~is_candidate] = -torch.inf
    scores[:, 0] = -torch.inf
    scores[hidden.row, hidden.item] = -torch.inf
    wanted, best = top_k(scores, k)
    wanted = torch.where(best > -torch.inf, wanted, 0)
    if kind == "plain":
        assert is_proven.all()
    for row in torch.nonzero(is_proven).flatten().tolist():
        assert found[row, : wanted.shape[1]].tolist() == wanted[row].tolist()
        assert (found[row, wanted.shape[1] :] == 0).all()


@pytest.mark.parametrize("V", [60, 2000])
def test_more_equal_items_than_are_taken_prove_nothing(V: int) -> None:
    nothing = Cells(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    items = ScreenedItems(torch.ones(V + 1, 3), torch.ones(V + 1, dtype=torch.bool))
    assert not best_items(items, torch.ones(2, 3), 10, nothing)[1].any()

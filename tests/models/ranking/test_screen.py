import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.models.ranking.screen import LARGEST_NORM, Cells, ScreenedItems, count_above, full_float32


def plain_counts(
    vectors: Tensor, is_candidate: Tensor, states: Tensor, row: Tensor, target: Tensor, hidden: Cells
) -> tuple[list[int], list[int]]:
    """The definition: every score in float64, rounded once."""
    scores = (states.double() @ vectors.double().T).float()
    own = scores[row, target]
    scores[:, ~is_candidate] = -torch.inf
    scores[:, 0] = -torch.inf
    scores[hidden.row, hidden.item] = -torch.inf
    rows = scores[row]
    rows[torch.arange(len(row)), target] = torch.nan
    return (rows > own[:, None]).sum(1).tolist(), (rows == own[:, None]).sum(1).tolist()


def case(seed: int, B: int, V: int, D: int, kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Cells]:
    """Vectors, candidates, states, rows, targets and hidden cells; `kind` is how hard they are to tell apart."""
    g = torch.Generator().manual_seed(seed)
    vectors, states = torch.randn(V + 1, D, generator=g), torch.randn(B, D, generator=g)
    if kind == "copies":  # few distinct vectors: many exact ties
        vectors = vectors[torch.randint(0, min(4, V + 1), (V + 1,), generator=g)]
    elif kind == "near":  # scores that float32 products cannot tell apart
        vectors = vectors[:1] + 1e-7 * vectors
    elif kind == "grid":  # small integers: exact scores, many ties, zeros
        vectors, states = vectors.round(), states.round()
    elif kind == "norms":  # from tiny to huge
        vectors *= 10.0 ** torch.randint(-30, 15, (V + 1, 1), generator=g)
        states *= 10.0 ** torch.randint(-20, 15, (B, 1), generator=g)
    elif kind == "zero":
        states[::2] = 0.0
    elif kind == "double":
        vectors, states = vectors.double() + 1e-9, states.double() - 1e-9
    is_candidate = torch.rand(V + 1, generator=g) < 0.8
    row = torch.randint(0, B, (3 * B,), generator=g).sort().values
    target = torch.randint(1, V + 1, (3 * B,), generator=g)
    is_candidate[target] = True
    hidden_row = torch.randint(0, B, (2 * B,), generator=g).sort().values
    hidden_item = torch.randint(1, V + 1, (2 * B,), generator=g)
    is_target = torch.isin(hidden_row * (V + 1) + hidden_item, row * (V + 1) + target)
    return vectors, is_candidate, states, row, target, Cells(hidden_row[~is_target], hidden_item[~is_target])


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    B=st.integers(1, 30),
    V=st.integers(1, 70),
    D=st.sampled_from([1, 3, 17, 64]),
    kind=st.sampled_from(["plain", "copies", "near", "grid", "norms", "zero", "double"]),
    block_items=st.sampled_from([1, 7, 64, 1024]),
)
def test_the_counts_are_those_of_the_definition(seed: int, B: int, V: int, D: int, kind: str, block_items: int) -> None:
    vectors, is_candidate, states, row, target, hidden = case(seed, B, V, D, kind)
    items = ScreenedItems(vectors, is_candidate, block_items=block_items)
    assert items.screens(states).all()
    above, equal = count_above(items, states, row, target, hidden)
    assert (above.tolist(), equal.tolist()) == plain_counts(vectors, is_candidate, states, row, target, hidden)


def test_a_row_with_many_targets_is_counted_in_several_lines() -> None:
    g = torch.Generator().manual_seed(0)
    vectors, states = torch.randn(200, 8, generator=g), torch.randn(5, 8, generator=g)
    is_candidate = torch.ones(200, dtype=torch.bool)
    row = torch.tensor([0] * 3 + [1] * 150 + [3] * 17 + [4])  # row 2 has none
    target = torch.randint(1, 200, (len(row),), generator=g)
    nothing = Cells(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
    above, equal = count_above(ScreenedItems(vectors, is_candidate), states, row, target, nothing)
    assert (above.tolist(), equal.tolist()) == plain_counts(vectors, is_candidate, states, row, target, nothing)


def test_without_targets_or_candidates_nothing_is_counted() -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    items = ScreenedItems(torch.ones(4, 2), torch.zeros(4, dtype=torch.bool))
    above, equal = count_above(items, torch.ones(2, 2), nothing, nothing, Cells(nothing, nothing))
    assert len(above) == len(equal) == 0
    above, equal = count_above(items, torch.ones(2, 2), torch.tensor([1]), torch.tensor([3]), Cells(nothing, nothing))
    assert (above.tolist(), equal.tolist()) == ([0], [0])


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), D=st.integers(1, 80), exponent=st.integers(-40, 18))
def test_float32_products_stay_within_the_bound(seed: int, D: int, exponent: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = torch.from_numpy((rng.normal(size=(50, D)) * 10.0**exponent).astype(np.float32))
    states = torch.from_numpy((rng.normal(size=(9, D)) * 10.0 ** rng.integers(-20, 18)).astype(np.float32))
    items = ScreenedItems(vectors, torch.ones(50, dtype=torch.bool))
    exact = (states.double() @ vectors.double().T).float().double()
    norms = torch.linalg.vector_norm(states.double(), dim=1)
    largest = float(torch.linalg.vector_norm(vectors.double(), dim=1).max())
    error = ((states @ vectors.T).double() - exact).abs().amax(1)
    assert (error <= items.bound(norms, largest)).all()


def test_what_could_overflow_or_is_not_finite_is_not_screened() -> None:
    is_candidate = torch.ones(3, dtype=torch.bool)
    items = ScreenedItems(torch.ones(3, 2), is_candidate)
    states = torch.tensor([[1.0, 1.0], [LARGEST_NORM, LARGEST_NORM], [torch.nan, 0.0], [torch.inf, 0.0]])
    assert items.screens(states).tolist() == [True, False, False, False]
    for wrong in (torch.nan, torch.inf, 2 * LARGEST_NORM):
        vectors = torch.ones(3, 2)
        vectors[2, 1] = wrong
        assert not ScreenedItems(vectors, is_candidate).screens(states).any()
        assert not ScreenedItems(vectors, torch.tensor([False, True, False])).screens(states).any()


def test_shorter_products_are_refused_outside_of_full_float32() -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    items = ScreenedItems(torch.ones(3, 2), torch.ones(3, dtype=torch.bool))
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ValueError, match="float32_matmul_precision=medium: wanted highest"):
            count_above(items, torch.ones(1, 2), nothing, nothing, Cells(nothing, nothing))
        with full_float32():
            count_above(items, torch.ones(1, 2), nothing, nothing, Cells(nothing, nothing))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        ScreenedItems(torch.ones(3, 2), torch.ones(4, dtype=torch.bool))

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.dataset import PreparedDataset
from recsys.models.negatives import Mixture, TrainingItems, draw_distinct, draw_rows, draw_unseen, width_of_search


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(
    seen=st.lists(st.lists(st.integers(0, 19), max_size=30), max_size=6),
    K=st.integers(1, 25),
    seed=st.integers(0, 99),
)
def test_unseen_negatives_are_distinct_unseen_and_as_many_as_there_are(
    seen: list[list[int]], K: int, seed: int
) -> None:
    flat = np.array([item for items in seen for item in items], dtype=np.int64)
    lengths = np.array([len(items) for items in seen], dtype=np.int64)
    negatives = draw_unseen(flat, lengths, 20, K, generator(seed))
    assert negatives.shape == (len(seen), K)
    for row, items in zip(negatives.tolist(), seen, strict=True):
        drawn = [item for item in row if item >= 0]
        assert len(drawn) == min(K, 20 - len(set(items)))
        assert len(set(drawn)) == len(drawn)
        assert set(drawn) <= set(range(20)) - set(items)


def test_a_long_history_widens_the_search_by_what_is_met_within_it_alone() -> None:
    sequence = np.repeat([0, 1], [20_000, 3])
    distance = np.concatenate([np.arange(20_000) * 50, [4, 999_999, 0]])  # every 50th of a million; three more
    assert width_of_search(distance, sequence, 2, 1_000_000, 100) == 100 + 3
    assert width_of_search(distance, sequence, 2, 1_000_000, 990_000) == 1_000_000
    assert width_of_search(np.arange(9), np.zeros(9, dtype=np.int64), 1, 50, 1) == 10, "nine in a row are passed"
    assert width_of_search(distance[:0], sequence[:0], 2, 1_000_000, 100) == 100


def test_every_unseen_item_is_drawn_equally_often_and_any_two_together() -> None:
    """A window of one random order: also pairs are those of a draw without replacement."""
    seen, rounds = np.array([0, 3, 3, 5], dtype=np.int64), 6000
    single, pair = np.zeros(8), np.zeros((8, 8))
    source = generator()
    for _ in range(rounds):
        first, second = draw_unseen(seen, np.array([2, 2]), 8, 3, source).tolist()
        single[first] += 1
        pair[np.ix_(first, first)] += 1
        assert 5 not in second
    unseen = [1, 2, 4, 5, 6, 7]
    np.testing.assert_allclose(single[unseen] / rounds, 3 / 6, atol=0.03)
    assert single[[0, 3]].sum() == 0
    off = pair[np.ix_(unseen, unseen)][~np.eye(6, dtype=bool)]
    np.testing.assert_allclose(off / rounds, 3 * 2 / (6 * 5), atol=0.03)


def test_sequences_draw_lists_of_their_own() -> None:
    nothing, lengths = np.zeros(0, dtype=np.int64), np.zeros(50, dtype=np.int64)
    lists = draw_unseen(nothing, lengths, 1_000, 5, generator()).tolist()
    assert len({tuple(each) for each in lists}) > 40
    assert len({item for each in lists for item in each}) > 150


def test_distinct_negatives_are_distinct_and_uniform() -> None:
    source, counts = generator(), np.zeros(10)
    for _ in range(5000):
        drawn = draw_distinct(10, 4, source).tolist()
        assert len(set(drawn)) == 4
        counts[drawn] += 1
    np.testing.assert_allclose(counts / 5000, 0.4, atol=0.03)
    assert sorted(draw_distinct(5, 9, source).tolist()) == [0, 1, 2, 3, 4]


def test_rows_draw_for_themselves() -> None:
    drawn = draw_rows(4000, 10, 3, generator())
    assert drawn.shape == (4000, 3)
    np.testing.assert_allclose(np.bincount(drawn.flatten().numpy(), minlength=10) / 12_000, 0.1, atol=0.01)
    assert len({tuple(row) for row in drawn.tolist()}) > 900


@pytest.mark.parametrize("uniform_share", [0.25, 1.0])
def test_the_mixture_draws_by_the_probabilities_it_tells(uniform_share: float) -> None:
    counts = np.array([90, 0, 9, 1], dtype=np.int64)
    mixture = Mixture(counts, uniform_share)
    q = (1 - uniform_share) * counts / 100 + uniform_share / 4
    np.testing.assert_allclose(mixture.log_q.exp().numpy(), q, rtol=1e-6)
    drawn = np.bincount(mixture.draw(40_000, generator()).numpy(), minlength=4) / 40_000
    np.testing.assert_allclose(drawn, q, atol=0.01)


def test_the_same_generator_draws_the_same() -> None:
    seen, lengths = np.array([1, 2, 3], dtype=np.int64), np.array([1, 2])
    mixture = Mixture(np.arange(50), 0.5)
    draws: list[Callable[[torch.Generator], torch.Tensor]] = [
        lambda g: draw_distinct(50, 9, g),
        lambda g: draw_rows(3, 50, 9, g),
        lambda g: draw_unseen(seen, lengths, 50, 9, g),
        lambda g: mixture.draw(9, g),
    ]
    for draw in draws:
        assert torch.equal(draw(generator(3)), draw(generator(3)))
        assert not torch.equal(draw(generator(3)), draw(generator(4)))


def test_training_items_are_those_before_the_validation_part(circle: PreparedDataset) -> None:
    slices = circle.train_slices()
    rows = [7, 0, 7, len(slices) - 1]
    items, lengths = TrainingItems(circle).of(slices.user[rows])
    wanted = [slices.gather(row)[0] - 1 for row in rows]
    assert lengths.tolist() == [len(part) for part in wanted]
    np.testing.assert_array_equal(items, np.concatenate(wanted))
    assert TrainingItems(circle).of(np.array([], dtype=np.int64))[0].tolist() == []


@pytest.mark.parametrize("user", [0, -1, 10_000])
def test_an_unknown_user_is_named(circle: PreparedDataset, user: int) -> None:
    with pytest.raises(ValueError, match=f"batch.users holds {user}; wanted 1 to 150"):
        TrainingItems(circle).of(np.array([1, user]))

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.errors import DataError
from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.models.floors import Ease, EaseConfig

Logs = Callable[[list[list[int]]], PreparedDataset]


def by_hand(train: list[list[int]], history: list[int], V: int, config: EaseConfig) -> np.ndarray:
    """Column by column, each item from all others by ridge regression: what the closed form solves."""
    X = np.zeros((len(train), V + 1))
    for user, items in enumerate(train):
        X[user, items] = 1.0
    B = np.zeros((V + 1, V + 1))
    for j in range(1, V + 1):
        others = [i for i in range(1, V + 1) if i != j]
        A = X[:, others]
        B[others, j] = np.linalg.solve(A.T @ A + config.l2 * np.eye(V - 1), A.T @ X[:, j])
    popularity = np.maximum(np.bincount(sum(train, []), minlength=V + 1), 1.0)
    scores = np.zeros(V + 1)
    for age, item in enumerate(reversed(history[-config.query_last :])):
        scores += config.query_decay**age * B[item]
    scores *= popularity**config.popularity_power
    scores[0] = -np.inf
    return scores


@settings(max_examples=20, deadline=None)
@given(
    data=st.data(),
    l2=st.sampled_from([0.5, 10.0]),
    last=st.sampled_from([2, 500]),
    decay=st.sampled_from([0.7, 1.0]),
    is_large=st.booleans(),
)
def test_scores_equal_a_ridge_regression_for_each_item(
    logs: Logs, data: st.DataObject, l2: float, last: int, decay: float, is_large: bool
) -> None:
    V = 6
    rows = data.draw(st.lists(st.lists(st.integers(1, V), min_size=3, max_size=9), max_size=5))
    sequences = [list(range(1, V + 1)), *rows]
    config = EaseConfig(l2=l2, query_last=last, query_decay=decay, popularity_power=-0.3)
    histories = data.draw(st.lists(st.lists(st.integers(1, V), min_size=1, max_size=8), min_size=1, max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        if is_large:
            patch.setattr("recsys.models.floors.training_events.DENSE_ITEMS", 1)
        found = Ease.fit(logs(sequences), config).scores(JaggedBatch.from_sequences(histories)).numpy()
    for row, history in zip(found, histories, strict=True):
        np.testing.assert_allclose(row, by_hand([items[:-2] for items in sequences], history, V, config), atol=2e-6)


def test_an_empty_history_scores_nothing(logs: Logs) -> None:
    scores = Ease.fit(logs([[1, 2, 3, 4, 5], [1, 2, 3, 1, 2]])).scores(JaggedBatch.from_sequences([[], [1]]))
    assert (scores[0, 1:] == 0).all()
    assert (scores[1, 2:4] > 0).all()


def test_too_many_items_are_refused_with_the_remedy(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = logs([[1, 2, 3, 4, 5]])
    monkeypatch.setattr("recsys.models.floors.ease.MAX_ITEMS", 4)
    with pytest.raises(
        DataError, match=r"ease takes at most 4 items, here are 5; leave it out .*filters.min_item_events"
    ):
        Ease.fit(dataset)


def test_too_little_memory_is_told_before_it_is_taken(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = logs([[1, 2, 3, 4, 5]])
    monkeypatch.setattr("recsys.models.floors.ease._BYTES_PER_PAIR", 2**40)
    with pytest.raises(DataError, match=r"ease needs 36864.0 GiB for 5 items, .* GiB are free"):
        Ease.fit(dataset)


@pytest.mark.parametrize("setting", [{"l2": 0.0}, {"query_last": 0}, {"query_decay": 2.0}, {"popularity_power": 7.0}])
def test_a_setting_out_of_range_is_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.*wanted"):
        EaseConfig(**setting)  # type: ignore[arg-type]  # a float for an int is the point


def test_candidates_pick_columns(logs: Logs) -> None:
    floor = Ease.fit(logs([[1, 2, 3, 4, 5, 1, 2], [3, 2, 1, 5, 4, 4, 4]]))
    batch, candidates = JaggedBatch.from_sequences([[1, 2], [3]]), torch.tensor([[5, 3, 5], [1, 2, 0]])
    assert torch.equal(floor.scores(batch, candidates), floor.scores(batch).gather(1, candidates))

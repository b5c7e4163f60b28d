from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.models.floors import ItemKNN, ItemKNNConfig

Logs = Callable[[list[list[int]]], PreparedDataset]


def by_hand(train: list[list[int]], history: list[int], V: int, config: ItemKNNConfig) -> np.ndarray:
    together = np.zeros((V + 1, V + 1))
    for items in train:
        if config.window is None:
            for i in set(items):
                for j in set(items) - {i}:
                    together[i, j] += 1
            continue
        for a in range(len(items)):
            for b in range(len(items)):
                if a != b and abs(a - b) <= config.window and items[a] != items[b]:
                    together[items[a], items[b]] += 1
    n = np.maximum(np.bincount(sum(train, []), minlength=V + 1), 1.0)
    norm = n[:, None] ** config.source_power * n[None, :] ** config.target_power
    similarity = together / (norm + config.shrink)
    scores = np.zeros(V + 1)
    for age, item in enumerate(reversed(history[-config.query_last :])):
        nearest = np.argsort(-similarity[item], kind="stable")[: config.neighbours]
        for j in nearest:
            scores[j] += config.query_decay**age * similarity[item, j]
    scores[0] = -np.inf
    return scores


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    window=st.sampled_from([None, 1, 3]),
    neighbours=st.sampled_from([1, 2, 100]),
    shrink=st.sampled_from([0.0, 2.0]),
    is_large=st.booleans(),
)
def test_scores_equal_their_definition(
    logs: Logs, data: st.DataObject, window: int | None, neighbours: int, shrink: float, is_large: bool
) -> None:
    V = 6
    rows = data.draw(st.lists(st.lists(st.integers(1, V), min_size=3, max_size=9), max_size=5))
    sequences = [list(range(1, V + 1)), *rows]
    config = ItemKNNConfig(window=window, neighbours=neighbours, shrink=shrink, query_last=3, query_decay=0.6)
    histories = data.draw(st.lists(st.lists(st.integers(1, V), min_size=1, max_size=8), min_size=1, max_size=4))
    with pytest.MonkeyPatch.context() as patch:
        if is_large:
            patch.setattr("recsys.models.floors.training_events.DENSE_ITEMS", 1)
            patch.setattr("recsys.models.floors.training_events._PAIRS_AT_ONCE", 5)
        found = ItemKNN.fit(logs(sequences), config).scores(JaggedBatch.from_sequences(histories)).numpy()
    for row, history in zip(found, histories, strict=True):
        np.testing.assert_allclose(row, by_hand([items[:-2] for items in sequences], history, V, config), atol=1e-12)


def test_no_window_no_shrink_and_half_powers_are_the_cosine(logs: Logs) -> None:
    dataset = logs([[1, 2, 3, 4, 4], [1, 2, 1, 1], [3, 2, 4, 4]])  # 1: users a b; 2: a b c; 3: a c
    config = ItemKNNConfig(shrink=0.0, query_decay=1.0)
    scores = ItemKNN.fit(dataset, config).scores(JaggedBatch.from_sequences([[1]]))[0]
    np.testing.assert_allclose(scores[1:].numpy(), [0, 2 / np.sqrt(2 * 3), 1 / np.sqrt(2 * 2), 0])


def test_only_the_last_500_events_of_a_user_make_up_their_set(logs: Logs) -> None:
    dataset = logs([[1, *([2] * 499), 3, 3, 3], [1, 1, 3, 3]])  # 501 training events: the 1 is too long ago
    scores = ItemKNN.fit(dataset).scores(JaggedBatch.from_sequences([[3]]))[0]
    assert scores[2] > 0
    assert scores[1] == 0


@pytest.mark.parametrize(
    "setting",
    [
        {"window": 0},
        {"neighbours": 0},
        {"query_last": 0},
        {"shrink": -1.0},
        {"query_decay": 0.0},
        {"source_power": 5.0},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.*wanted"):
        ItemKNNConfig(**setting)  # type: ignore[arg-type]  # a float for an int is the point

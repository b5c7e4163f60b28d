from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.models.floors import TransitionConfig, TransitionKNN
from recsys.models.floors.training_events import TrainingEvents

Logs = Callable[[list[list[int]]], PreparedDataset]


def batch_of(*histories: list[int]) -> JaggedBatch:
    return JaggedBatch.from_sequences(histories)


def by_hand(train: list[list[int]], history: list[int], V: int, config: TransitionConfig) -> np.ndarray:
    """The two formulas, pair by pair."""
    count = np.zeros((V + 1, V + 1))
    for items in train:
        for a in range(len(items)):
            for b in range(a + 1, min(a + config.window, len(items) - 1) + 1):
                count[items[a], items[b]] += config.decay ** (b - a - 1)
                count[items[b], items[a]] += config.backward * config.decay ** (b - a - 1)
    popularity = np.maximum(np.bincount(sum(train, []), minlength=V + 1), 1.0)
    scores = np.zeros(V + 1)
    for age, item in enumerate(reversed(history[-config.query_last :])):
        scores += config.query_decay**age * count[item] / popularity[item] ** config.source_power
    scores *= popularity**config.popularity_power
    scores[0] = -np.inf
    return scores


@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    window=st.integers(1, 6),
    last=st.integers(1, 5),
    power=st.sampled_from([-0.3, 0.0]),
    source_power=st.sampled_from([0.0, 0.7]),
    backward=st.sampled_from([0.0, 0.4]),
)
def test_scores_equal_their_definition(
    logs: Logs, data: st.DataObject, window: int, last: int, power: float, source_power: float, backward: float
) -> None:
    V = 6
    rows = data.draw(st.lists(st.lists(st.integers(1, V), min_size=3, max_size=9), max_size=5))
    sequences = [list(range(1, V + 1)), *rows]
    config = TransitionConfig(
        window=window,
        query_last=last,
        popularity_power=power,
        decay=0.7,
        query_decay=0.6,
        source_power=source_power,
        backward=backward,
    )
    histories = data.draw(st.lists(st.lists(st.integers(1, V), min_size=1, max_size=8), min_size=1, max_size=4))
    found = TransitionKNN.fit(logs(sequences), config).scores(batch_of(*histories)).numpy()
    for row, history in zip(found, histories, strict=True):
        np.testing.assert_allclose(row, by_hand([items[:-2] for items in sequences], history, V, config), atol=1e-12)


def test_what_is_held_out_is_not_counted(logs: Logs) -> None:
    dataset = logs([[1, 2, 3, 4], [1, 2, 4, 3]])
    scores = TransitionKNN.fit(dataset).scores(batch_of([2]))[0]
    assert scores[1:].tolist() == [0.0, 0.0, 0.0, 0.0]


def test_pairs_never_run_from_one_user_into_the_next(logs: Logs) -> None:
    scores = TransitionKNN.fit(logs([[1, 2, 3, 3], [4, 4, 3, 3]])).scores(batch_of([2]))[0]
    assert (scores[1:] == 0).all()


def test_an_empty_history_has_no_transition(logs: Logs) -> None:
    scores = TransitionKNN.fit(logs([[1, 2, 3, 4, 5]])).scores(batch_of([], [1]))
    assert scores[0, 1:].sum() == 0
    assert scores[1, 1:].sum() > 0


def test_scoring_and_counting_in_parts_change_nothing(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    dataset = logs([list(range(1, 201)), *rng.integers(1, 201, (60, 8)).tolist()])
    batch = batch_of(*rng.integers(1, 201, (9, 7)).tolist())
    whole = TransitionKNN.fit(dataset)
    assert whole.is_sparse
    wanted = whole.scores(batch)
    assert wanted[:, 1:].sum() > 0
    monkeypatch.setattr("recsys.models.floors.link_scorer._ENTRIES_AT_ONCE", 10)
    assert torch.equal(whole.scores(batch), wanted)
    monkeypatch.setattr("recsys.models.floors.training_events._PAIRS_AT_ONCE", 100)
    torch.testing.assert_close(TransitionKNN.fit(dataset).scores(batch), wanted)


def test_few_items_with_many_links_are_added_by_rows_to_the_same_scores(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    dataset = logs([list(range(1, 21)), *rng.integers(1, 21, (40, 12)).tolist()])
    batch = batch_of(*rng.integers(1, 21, (9, 7)).tolist(), [])
    dense = TransitionKNN.fit(dataset)
    monkeypatch.setattr("recsys.models.floors.link_scorer._DENSE_BYTES", 0)
    sparse = TransitionKNN.fit(dataset)
    assert (dense.is_sparse, sparse.is_sparse) == (False, True)
    torch.testing.assert_close(dense.scores(batch), sparse.scores(batch))


@pytest.mark.parametrize("window", [1, 3, 20])
def test_pairs_counted_once_for_all_windows_give_the_same_bits(logs: Logs, window: int) -> None:
    dataset = logs([list(range(1, 31)), *np.random.default_rng(0).integers(1, 31, (40, 12)).tolist()])
    events = TrainingEvents.of(dataset).prepare(20)
    config = TransitionConfig(window=window, decay=0.37)
    batch = batch_of([1, 2, 3], [7], [30, 29])
    wanted = TransitionKNN.fit(dataset, config).scores(batch)
    assert torch.equal(TransitionKNN.fit(dataset, config, events).scores(batch), wanted)


@pytest.mark.parametrize(
    "setting",
    [
        {"window": 0},
        {"query_last": 0},
        {"decay": 0.0},
        {"query_decay": 1.5},
        {"decay": float("nan")},
        {"popularity_power": float("nan")},
        {"source_power": 9.0},
        {"backward": -0.1},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.*wanted"):
        TransitionConfig(**setting)  # type: ignore[arg-type]  # a float for an int is the point

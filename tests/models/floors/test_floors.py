from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models.floors import Popularity, TransitionConfig, TransitionKNN


def write_logs(folder: Path, sequences: list[list[int]]) -> PreparedDataset:
    """Item ids are 1..V and appear in that order, so an id is its index; the last two events of a user are held out."""
    lines = [f"{user} {' '.join(map(str, items))}" for user, items in enumerate(sequences, start=1)]
    folder.mkdir(exist_ok=True)
    (folder / "log.txt").write_text("\n".join(lines) + "\n")
    return prepare(folder / "log.txt", folder / "data", PrepareConfig(split=SplitConfig(protocol="loo")))


def batch_of(*histories: list[int]) -> JaggedBatch:
    return JaggedBatch.from_sequences(histories)


def by_hand(train: list[list[int]], history: list[int], V: int, config: TransitionConfig) -> np.ndarray:
    """The two formulas, pair by pair."""
    count = np.zeros((V + 1, V + 1))
    for items in train:
        for a in range(len(items)):
            for b in range(a + 1, min(a + config.window, len(items) - 1) + 1):
                count[items[a], items[b]] += config.decay ** (b - a - 1)
    popularity = np.bincount(sum(train, []), minlength=V + 1)
    scores = np.zeros(V + 1)
    for age, item in enumerate(reversed(history[-config.query_last :])):
        scores += config.query_decay**age * count[item]
    scores *= np.maximum(popularity, 1.0) ** config.popularity_power
    scores[0] = -np.inf
    return scores


@settings(max_examples=40, deadline=None)
@given(data=st.data(), window=st.integers(1, 6), last=st.integers(1, 5), power=st.sampled_from([-0.3, 0.0]))
def test_transition_scores_equal_their_definition(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, window: int, last: int, power: float
) -> None:
    V = 6
    rows = data.draw(st.lists(st.lists(st.integers(1, V), min_size=3, max_size=9), max_size=5))
    sequences = [list(range(1, V + 1)), *rows]
    dataset = write_logs(tmp_path_factory.mktemp("logs"), sequences)
    config = TransitionConfig(window=window, query_last=last, popularity_power=power, decay=0.7, query_decay=0.6)
    histories = data.draw(st.lists(st.lists(st.integers(1, V), min_size=1, max_size=8), min_size=1, max_size=4))
    found = TransitionKNN.fit(dataset, config).scores(batch_of(*histories)).numpy()
    for row, history in zip(found, histories, strict=True):
        np.testing.assert_allclose(row, by_hand([items[:-2] for items in sequences], history, V, config), atol=1e-12)


def test_what_is_held_out_is_not_counted(tmp_path: Path) -> None:
    dataset = write_logs(tmp_path, [[1, 2, 3, 4], [1, 2, 4, 3]])
    scores = TransitionKNN.fit(dataset).scores(batch_of([2]))[0]
    assert scores[1:].tolist() == [0.0, 0.0, 0.0, 0.0]
    assert Popularity.fit(dataset).scores(batch_of([2]))[0].tolist() == [-torch.inf, 2, 2, 0, 0]


def test_popularity_is_the_same_for_every_history(tmp_path: Path) -> None:
    dataset = write_logs(tmp_path, [[1, 2, 3, 1], [2, 2, 3, 1], [3, 2, 2, 2]])
    scores = Popularity.fit(dataset).scores(batch_of([1], [], [2, 3]))
    assert scores.tolist() == [[-torch.inf, 1, 4, 1]] * 3


def test_pairs_never_run_from_one_user_into_the_next(tmp_path: Path) -> None:
    dataset = write_logs(tmp_path, [[1, 2, 3, 3], [4, 4, 3, 3]])
    scores = TransitionKNN.fit(dataset).scores(batch_of([2]))[0]
    assert (scores[1:] == 0).all()


def test_candidates_pick_columns(tmp_path: Path) -> None:
    dataset = write_logs(tmp_path, [[1, 2, 3, 4, 5, 1, 2], [3, 2, 1, 5, 4, 4, 4]])
    batch, candidates = batch_of([1, 2], [3]), torch.tensor([[5, 3, 5], [1, 2, 0]])
    for floor in (Popularity.fit(dataset), TransitionKNN.fit(dataset)):
        assert torch.equal(floor.scores(batch, candidates), floor.scores(batch).gather(1, candidates))


def test_an_empty_history_has_no_transition(tmp_path: Path) -> None:
    dataset = write_logs(tmp_path, [[1, 2, 3, 4, 5]])
    scores = TransitionKNN.fit(dataset).scores(batch_of([], [1]))
    assert scores[0, 1:].sum() == 0
    assert scores[1, 1:].sum() > 0


def test_scoring_in_parts_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    dataset = write_logs(tmp_path, [list(range(1, 31)), *rng.integers(1, 31, (40, 12)).tolist()])
    knn, batch = TransitionKNN.fit(dataset), batch_of(*rng.integers(1, 31, (9, 7)).tolist())
    whole = knn.scores(batch)
    monkeypatch.setattr("recsys.models.floors.transition_knn._ENTRIES_AT_ONCE", 10)
    torch.testing.assert_close(knn.scores(batch), whole)


@pytest.mark.parametrize(
    "setting", [{"window": 0}, {"query_last": 0}, {"decay": 0.0}, {"query_decay": 1.5}, {"decay": float("nan")}]
)
def test_a_setting_out_of_range_is_refused_by_name(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.*wanted"):
        TransitionConfig(**setting)  # type: ignore[arg-type]  # a float for an int is the point

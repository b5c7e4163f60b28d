from collections.abc import Callable

import torch

from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.models.floors import Blend, ItemKNN, Popularity, RecentPopularity, TransitionKNN

Logs = Callable[[list[list[int]]], PreparedDataset]


def test_popularity_is_the_same_for_every_history(logs: Logs) -> None:
    dataset = logs([[1, 2, 3, 1], [2, 2, 3, 1], [3, 2, 2, 2]])
    scores = Popularity.fit(dataset).scores(JaggedBatch.from_sequences([[1], [], [2, 3]]))
    assert scores.tolist() == [[-torch.inf, 1, 4, 1]] * 3


def test_what_is_held_out_is_not_counted(logs: Logs) -> None:
    dataset = logs([[1, 2, 3, 4], [1, 2, 4, 3]])
    assert Popularity.fit(dataset).scores(JaggedBatch.from_sequences([[2]]))[0].tolist() == [-torch.inf, 2, 2, 0, 0]


def test_candidates_pick_columns(logs: Logs) -> None:
    dataset = logs([[1, 2, 3, 4, 5, 1, 2], [3, 2, 1, 5, 4, 4, 4]])
    batch, candidates = JaggedBatch.from_sequences([[1, 2], [3]]), torch.tensor([[5, 3, 5], [1, 2, 0]])
    for floor in (fit.fit(dataset) for fit in (Popularity, RecentPopularity, TransitionKNN, ItemKNN, Blend)):
        assert torch.equal(floor.scores(batch, candidates), floor.scores(batch).gather(1, candidates))

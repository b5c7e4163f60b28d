from collections.abc import Callable

import pytest
import torch

from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.models.floors import Blend, BlendConfig, ItemKNN, TransitionKNN

Logs = Callable[[list[list[int]]], PreparedDataset]


@pytest.mark.parametrize("is_sparse", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_blend_is_the_sum_of_both_in_units_of_their_mean_link(
    logs: Logs, monkeypatch: pytest.MonkeyPatch, share: float, is_sparse: bool
) -> None:
    if is_sparse:
        monkeypatch.setattr("recsys.models.floors.link_scorer._DENSE_BYTES", 0)
    dataset = logs([[1, 2, 3, 4, 5, 1, 2], [3, 2, 1, 5, 4, 4, 4], [2, 5, 5, 1]])
    batch = JaggedBatch.from_sequences([[1, 2], [3], [], [5, 4, 3, 2, 1]])
    transition, item = TransitionKNN.fit(dataset), ItemKNN.fit(dataset)
    t, n = (float(floor.parts[0].links.weights.sum()) / 5 for floor in (transition, item))
    wanted = (1 - share) / t * transition.scores(batch)[:, 1:] + share / n * item.scores(batch)[:, 1:]
    blend = Blend.fit(dataset, BlendConfig(share=share))
    assert blend.is_sparse == is_sparse
    torch.testing.assert_close(blend.scores(batch)[:, 1:], wanted)


def test_each_part_reads_its_own_stretch_of_the_history(logs: Logs) -> None:
    dataset = logs([[1, 2, 3, 4, 5, 1, 2], [3, 2, 1, 5, 4, 4, 4]])
    blend = Blend.fit(dataset)
    assert blend.max_len == max(part.last for part in blend.parts) == 20


def test_a_log_without_pairs_scores_nothing(logs: Logs) -> None:
    scores = Blend.fit(logs([[1, 2, 3], [2, 1, 3]])).scores(JaggedBatch.from_sequences([[1, 2]]))
    assert (scores[0, 1:] == 0).all()


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="share=1.5: wanted a share from 0 to 1"):
        BlendConfig(share=1.5)

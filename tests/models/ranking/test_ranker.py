import numpy as np
import pytest
import torch

from recsys.features.batches import JaggedBatch
from recsys.features.vocabulary import Vocabulary
from recsys.models import registry
from recsys.models.bundle import Bundle, load_bundle, save_bundle
from recsys.models.ranking.ranker import History, Ranker
from recsys.models.ranking.score import scores_of

ITEMS = [10, 20, 30, 40, 50, 60]
POPULARITY = np.array([0, 9, 7, 7, 3, 1, 0])  # item 60 never occurred in training


@pytest.fixture(scope="module", params=registry.names())
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(0)
    config = {"d_model": 8, "num_layers": 1, "num_heads": 1, "d_ff": 8, "max_len": 5}
    path = save_bundle(
        tmp_path_factory.mktemp("bundle") / "b",
        model=registry.build(request.param, config, len(ITEMS)),
        name=request.param,
        config=config,
        items=Vocabulary.from_ids(ITEMS),
        popularity=POPULARITY,
        metrics={},
        data={},
        golden_histories=[[10]],
    )
    return load_bundle(path)


def test_scores_are_those_of_the_model_and_best_comes_first(bundle: Bundle) -> None:
    (answer,) = Ranker(bundle).recommend([History([10, 30])], 10)
    vectors = bundle.model.item_vectors().double()  # as evaluation takes them
    wanted = scores_of(bundle.model, JaggedBatch.from_sequences([[1, 3]]), vectors)[0]
    assert answer.source == "model"
    assert set(answer.item_ids) == {20, 40, 50}
    assert answer.scores == [float(wanted[ITEMS.index(int(item)) + 1]) for item in answer.item_ids]
    assert answer.scores == sorted(answer.scores, key=lambda score: -(score or 0.0))


def test_seen_excluded_and_untrained_items_are_left_out(bundle: Bundle) -> None:
    ranker = Ranker(bundle)
    (kept,) = ranker.recommend([History([10, 30])], 10, exclude_seen=False)
    assert set(kept.item_ids) == {10, 20, 30, 40, 50}
    first, second = ranker.recommend([History([10]), History([20])], 10, exclude=[[20, 999], [50]])
    assert set(first.item_ids) == {30, 40, 50}
    assert set(second.item_ids) == {10, 30, 40}
    assert len(ranker.recommend([History([10])], 2)[0].item_ids) == 2
    with pytest.raises(ValueError, match="exclude has 1 entries for 2 histories"):
        ranker.recommend([History([10]), History([20])], 3, exclude=[[20]])


def test_what_was_seen_long_before_max_len_is_left_out_too(bundle: Bundle) -> None:
    (answer,) = Ranker(bundle).recommend([History([40] + [10, 20] * 4)], 10)
    assert set(answer.item_ids) == {30, 50}


def test_a_history_without_a_known_item_gets_the_popularity_list(bundle: Bundle) -> None:
    new, stranger = Ranker(bundle).recommend([History([]), History([77, 78])], 10)
    for answer in (new, stranger):
        assert answer.source == "popularity"
        assert answer.item_ids == [10, 20, 30, 40, 50]  # 20 and 30 are equal: the lower index first
        assert answer.scores == [9, 7, 7, 3, 1]
    assert new.unknown == []
    assert stranger.unknown == [77, 78]


def test_unknown_items_are_reported_and_change_nothing(bundle: Bundle) -> None:
    with_unknown, without = Ranker(bundle).recommend([History([10, 77, 30]), History([10, 30])], 10)
    assert with_unknown.unknown == [77]
    assert with_unknown.item_ids == without.item_ids
    np.testing.assert_allclose(np.array(with_unknown.scores, float), np.array(without.scores, float), atol=1e-6)


def test_a_batch_answers_as_one_history_at_a_time(bundle: Bundle) -> None:
    histories = [History([ITEMS[(i + j) % 5] for j in range(i % 7)]) for i in range(600)]
    together = Ranker(bundle).recommend(histories, 3)
    for i in (0, 1, 255, 256, 257, 599):
        (alone,) = Ranker(bundle).recommend([histories[i]], 3)
        assert together[i].item_ids == alone.item_ids
        np.testing.assert_allclose(np.array(together[i].scores, float), np.array(alone.scores, float), atol=1e-6)


def test_candidates_are_ranked_and_unknown_ones_stand_last(bundle: Bundle) -> None:
    ranker = Ranker(bundle)
    answer = ranker.rank(History([10]), [77, 20, 60, 10, 50])
    assert answer.item_ids[3:] == [77, 60]
    assert answer.scores[3:] == [None, None]
    (everything,) = ranker.recommend([History([10])], 10, exclude_seen=False)
    assert answer.item_ids[:3] == [item for item in everything.item_ids if item in (20, 10, 50)]
    assert ranker.rank(History([]), [50, 10, 20]).item_ids == [10, 20, 50]
    assert ranker.rank(History([]), [30, 20, 10]).item_ids == [10, 20, 30]  # 20 and 30 are equal: the lower index first
    assert ranker.rank(History([10]), []).item_ids == []

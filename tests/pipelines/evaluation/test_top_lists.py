from typing import Any

import numpy as np
import pytest
import torch

from recsys.features.dataset import PreparedDataset
from recsys.models.floors import Popularity, TransitionKNN
from recsys.models.sasrec import SASRec, SASRecConfig
from recsys.pipelines.evaluation.top_lists import top_lists


@pytest.fixture(scope="module")
def model(circle: PreparedDataset) -> SASRec:
    torch.manual_seed(0)
    return SASRec(SASRecConfig(d_model=16, num_heads=2, num_layers=1, max_len=8), num_items=circle.num_items)


@pytest.mark.parametrize("seen", ["exclude", "keep"])
@pytest.mark.parametrize("k", [1, 10, 50])
def test_screened_lists_are_the_plain_ones(circle: PreparedDataset, model: SASRec, seen: Any, k: int) -> None:
    queries = circle.queries("test")
    plain = top_lists(model, circle, queries, k, seen, precision="plain")
    assert top_lists(model, circle, queries, k, seen).tolist() == plain.tolist()
    assert top_lists(model, circle, queries, k, seen, score_bytes=1).tolist() == plain.tolist()


def test_equal_vectors_stand_in_the_order_of_their_index(circle: PreparedDataset, model: SASRec) -> None:
    with torch.no_grad():
        kept = model.get_parameter("item.weight").clone()
        model.get_parameter("item.weight")[1:] = 1.0
    queries = circle.queries("test")
    lists = top_lists(model, circle, queries, 5, "keep")
    with torch.no_grad():
        model.get_parameter("item.weight").copy_(kept)
    assert lists.tolist() == [[1, 2, 3, 4, 5]] * len(queries)


@pytest.mark.parametrize("floor", [Popularity, TransitionKNN])
def test_a_list_holds_candidates_once_and_no_seen_item(circle: PreparedDataset, floor: Any) -> None:
    queries = circle.queries("test")
    lists = top_lists(floor.fit(circle), circle, queries, 30)
    for n, row in enumerate(lists):
        shown = row[row > 0].tolist()
        assert len(set(shown)) == len(shown)
        assert not np.isin(shown, queries.gather(n)[0]).any()
        assert (row[len(shown) :] == 0).all()


def test_a_list_of_nothing_is_refused(circle: PreparedDataset, model: SASRec) -> None:
    with pytest.raises(ValueError, match="k=0: wanted at least 1"):
        top_lists(model, circle, circle.queries("test"), 0)

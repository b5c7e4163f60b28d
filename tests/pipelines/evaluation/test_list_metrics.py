from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.pipelines.evaluation.list_metrics import Diversity, gini, list_metrics, new_items


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Training: items 1 1 1 1 2 2 3 4 (popularity 4, 2, 1, 1); the last two events of each user are held out."""
    folder = tmp_path_factory.mktemp("shop")
    lines = ["1 1 1 1 1 2 2 1", "2 2 3 4 5 1"]
    (folder / "log.txt").write_text("\n".join(lines) + "\n")
    return prepare(folder / "log.txt", folder / "data", PrepareConfig(split=SplitConfig(protocol="loo")))


def test_the_figures_are_those_worked_by_hand(shop: PreparedDataset) -> None:
    queries = shop.queries("test")
    assert shop.train_counts().tolist() == [0, 4, 2, 1, 1, 0]
    assert [queries.gather(n)[0].tolist() for n in range(2)] == [[1, 1, 1, 1, 2, 2], [2, 3, 4, 5]]
    found = list_metrics(np.array([[1, 2], [3, 0]]), shop, queries)
    assert found["coverage"] == pytest.approx(3 / 4)  # items 1, 2, 3 of 1 to 4
    assert found["gini"] == pytest.approx(1 / 4)  # exposure 0, 1, 1, 1
    assert found["novelty"] == pytest.approx(((1 + 2) / 2 + 3) / 2)  # bits of shares 1/2, 1/4; 1/8
    assert found["popularity"] == pytest.approx(((4 + 2) / 2 + 1) / 2)
    before = ((4 * 4 + 2 * 2) / 6 + (2 + 1 + 1 + 0) / 4) / 2
    assert found["popularity_bias"] == pytest.approx(2.0 / before)
    assert found["repeats"] == pytest.approx(1.0)  # all three were in the histories
    assert found["diversity"] is None
    assert found["new_items"] is None  # no times


def test_diversity_is_by_label_or_by_angle(shop: PreparedDataset) -> None:
    queries, lists = shop.queries("test"), np.array([[1, 2, 3], [4, 0, 0]])
    labels = Diversity(of="category", labels=np.array([-1, 7, 7, 8, 8, 8]))
    assert list_metrics(lists, shop, queries, labels)["diversity"] == pytest.approx(2 / 3)  # one pair of three is alike
    unknown = Diversity(of="category", labels=np.array([-1, 7, 7, -1, 8, 8]))
    assert list_metrics(lists, shop, queries, unknown)["diversity"] == pytest.approx(0.0)  # only the pair 1, 2 is known
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [1.0, 1.0]])
    angle = Diversity(of="vectors of x", vectors=vectors)
    assert list_metrics(lists, shop, queries, angle)["diversity"] == pytest.approx((0 + 1 + 1) / 3)


def test_what_is_neither_vectors_nor_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="either vectors or labels"):
        Diversity(of="nothing")


def test_gini_runs_from_equal_to_one_item_for_all() -> None:
    assert gini(np.array([3, 3, 3])) == pytest.approx(0.0)
    assert gini(np.array([0, 9, 0, 0])) == pytest.approx(3 / 4)
    assert gini(np.array([1, 2, 3, 4])) == pytest.approx(0.25)
    assert gini(np.zeros(4, dtype=np.int64)) == 0.0


def test_items_that_entered_late_are_new(tmp_path: Path) -> None:
    lines = ["user_id,item_id,timestamp", *(f"u{n % 4},i{n % 5},{1_600_000_000 + 60 * n}" for n in range(95))]
    lines += [f"u{n % 4},late,{1_600_000_000 + 60 * (95 + n)}" for n in range(9)]
    lines += [f"u{n},i0,{1_600_009_000 + n}" for n in range(4)]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    split = SplitConfig(protocol="loo-novalid")
    dataset = prepare(tmp_path / "log.csv", tmp_path / "data", PrepareConfig(split=split))
    queries, late = dataset.queries("test"), int(dataset.items.encode(["late"])[0])
    lists = np.array([[late, 1], [1, 2], [1, 2], [1, 2]])
    assert list_metrics(lists, dataset, queries)["new_items"] == pytest.approx(1 / 8)


def test_an_item_that_entered_at_the_very_start_of_the_last_tenth_is_new(tmp_path: Path) -> None:
    """Eleven training events at 0, 1, … 10 minutes: the last tenth begins at 9."""
    rows = [("abcabcabdeab"[n], 1_600_000_000 + 60 * n) for n in range(12)]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "".join(f"u,{i},{t}\n" for i, t in rows))
    split = SplitConfig(protocol="loo-novalid")
    dataset = prepare(tmp_path / "log.csv", tmp_path / "data", PrepareConfig(split=split))
    is_new = new_items(dataset)
    assert is_new is not None
    assert is_new[dataset.items.encode(list("abcde"))].tolist() == [False, False, False, False, True]


def test_empty_lists_have_no_figures_and_other_lists_are_refused(shop: PreparedDataset) -> None:
    queries = shop.queries("test")
    assert set(list_metrics(np.zeros((2, 3), dtype=np.int64), shop, queries).values()) == {None}
    with pytest.raises(ValueError, match=r"shape \(1, 3\); wanted \(2, k\)"):
        list_metrics(np.zeros((1, 3), dtype=np.int64), shop, queries)
    with pytest.raises(ValueError, match="holds index 6; wanted 0..5"):
        list_metrics(np.full((2, 1), 6), shop, queries)

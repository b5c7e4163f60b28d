"""Counts and vocabularies of what was trained: those of the training part are silent, others are found by name."""

from pathlib import Path

import numpy as np
import pytest

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.leakage import check_bundle, check_counts
from recsys.features.leakage.popularity import part_counts
from recsys.features.prepare import PrepareConfig, prepare
from recsys.features.vocabulary import Vocabulary


def bundle(folder: Path, counts: np.ndarray, items: Vocabulary) -> Path:
    """What a bundle keeps of its data: popularity and vocabulary."""
    folder.mkdir()
    np.save(folder / "popularity.npy", counts)
    items.save(folder / "vocabulary", "items")
    return folder


def test_the_counts_of_the_training_part_are_silent(circle: PreparedDataset, tmp_path: Path) -> None:
    assert part_counts(circle)[0].tolist() == circle.train_counts().tolist()
    assert check_counts(circle, circle.train_counts(), "counts") == []
    assert check_counts(circle, circle.train_counts().astype(np.float32), "counts") == []
    assert check_bundle(circle, bundle(tmp_path / "bundle", circle.train_counts(), circle.items)) == []


@pytest.mark.parametrize(
    ("parts", "what"), [([0, 1], "training and validation part"), ([0, 1, 2], "all events"), ([0, 2], "test part")]
)
def test_counts_over_more_than_the_training_part_are_found(
    circle: PreparedDataset, parts: list[int], what: str, tmp_path: Path
) -> None:
    counts = part_counts(circle)[parts].sum(0)
    (leak,) = check_bundle(circle, bundle(tmp_path / "bundle", counts, circle.items))
    assert leak.name == "popularity from test"
    assert what in leak.where
    assert "popularity.npy" in leak.where


def test_one_event_too_many_is_found(circle: PreparedDataset) -> None:
    counts = circle.train_counts()
    counts[3] += 1
    (leak,) = check_counts(circle, counts, "counts")
    assert (leak.name, leak.count) == ("popularity from test", 1)
    assert "item index 3" in leak.example


def test_fewer_events_are_another_popularity(circle: PreparedDataset) -> None:
    counts = circle.train_counts()
    counts[3] -= 1
    assert [leak.name for leak in check_counts(circle, counts, "counts")] == ["another popularity"]


def test_a_window_counts_its_own_training_events_and_no_others(circle: PreparedDataset) -> None:
    times = np.concatenate([circle.train_slices().gather(i)[1] for i in range(circle.num_users)])
    since = int(np.median(times))
    recent, all_time = part_counts(circle, since), part_counts(circle)
    assert 0 < recent[0].sum() == np.count_nonzero(times >= since) < len(times)
    assert check_counts(circle, recent[0], "recent", since_us=since) == []
    for wrong in (np.minimum(all_time[2], all_time[0]), all_time[0], recent[0] // 2, recent[2]):
        assert [leak.name for leak in check_counts(circle, wrong, "recent", since_us=since)] == ["popularity from test"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("is_window", [True, False])
def test_counts_that_are_not_finite_are_found(circle: PreparedDataset, value: float, is_window: bool) -> None:
    counts = circle.train_counts().astype(float)
    counts[3] = value
    (leak,) = check_counts(circle, counts, "counts", since_us=0 if is_window else None)
    assert leak.name == "popularity from test"


def test_a_window_in_time_wants_times(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 2 3 4\n2 3 4 5\n")
    dataset = prepare(tmp_path / "a.txt", tmp_path / "data", PrepareConfig())
    with pytest.raises(ValueError, match="since_us=7: the dataset has no times"):
        check_counts(dataset, dataset.train_counts(), "recent", since_us=7)


def test_counts_of_other_items_are_found(circle: PreparedDataset) -> None:
    assert [leak.name for leak in check_counts(circle, np.zeros(4), "counts")] == ["vocabulary from test"]


def test_a_bundle_with_other_items_is_found(circle: PreparedDataset, tmp_path: Path) -> None:
    ids = circle.items.decode(np.arange(1, circle.num_items + 1))
    swapped = Vocabulary.from_ids([ids[1], ids[0], *ids[2:]])
    (leak,) = check_bundle(circle, bundle(tmp_path / "swapped", circle.train_counts(), swapped))
    assert (leak.name, leak.count, leak.example) == ("vocabulary from test", 2, "item index 1")
    longer = Vocabulary.from_ids([*ids, "of-tomorrow"])
    (leak,) = check_bundle(circle, bundle(tmp_path / "longer", circle.train_counts(), longer))
    assert leak.example == f"item index {circle.num_items + 1}"


def test_a_bundle_without_its_counts_is_refused(circle: PreparedDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"popularity\.npy: missing or damaged"):
        check_bundle(circle, tmp_path)

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys.errors import DataError
from recsys.features.batches import JaggedBatch
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models.floors import Popularity
from recsys.models.sasrec import SASRec, SASRecConfig
from recsys.pipelines.evaluation.evaluate import evaluate_sampled
from recsys.pipelines.evaluation.full_ranking import rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.evaluation.sampled import By, draw_negatives, sampled_ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    rows = [" ".join(map(str, [u, *rng.geometric(0.1, 8).clip(1, 40)])) for u in range(300)]
    (folder / "log.txt").write_text("\n".join(rows) + "\n")
    return prepare(folder / "log.txt", folder / "data", PrepareConfig(split=SplitConfig(protocol="loo")))


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_negatives_are_distinct_unseen_and_no_targets(data: PreparedDataset, by: By) -> None:
    queries, counts = data.queries("test"), data.train_counts()
    drawn = draw_negatives(data, queries, 10, by)
    for n, row in enumerate(drawn):
        assert len(set(row.tolist())) == 10
        assert not np.isin(row, queries.gather(n)[0]).any()
        assert not np.isin(row, queries.targets(n)).any()
        assert (counts[row] > 0).all()


def test_the_seed_alone_decides_what_is_drawn(data: PreparedDataset) -> None:
    queries = data.queries("test")
    first = draw_negatives(data, queries, 5, seed=3)
    assert (draw_negatives(data, queries, 5, seed=3) == first).all()
    assert (draw_negatives(data, queries, 5, seed=4) != first).any()


def test_popular_items_are_drawn_in_proportion(data: PreparedDataset) -> None:
    queries, counts = data.queries("test"), data.train_counts()
    drawn = draw_negatives(data, queries, 1, "popularity", seed=1)[:, 0]
    expected = np.zeros(len(counts))
    for n in range(len(queries)):
        weight = counts.astype(float)
        weight[np.union1d(queries.gather(n)[0], queries.targets(n))] = 0.0
        expected += weight / weight.sum()
    found = np.bincount(drawn, minlength=len(counts))
    common = expected > 10
    assert np.abs(found - expected)[common].max() < 4 * np.sqrt(expected[common].max())
    assert np.corrcoef(found, expected)[0, 1] > 0.9


def test_with_all_items_as_negatives_the_ranks_are_the_full_ones(tmp_path: Path) -> None:
    rows = [list(range(1, 9)), [3, 1, 2, 4], [5, 6, 7, 2]]
    (tmp_path / "log.txt").write_text("".join(f"{u} {' '.join(map(str, row))}\n" for u, row in enumerate(rows)))
    dataset = prepare(tmp_path / "log.txt", tmp_path / "data", PrepareConfig(split=SplitConfig(protocol="loo-novalid")))
    queries, counts = dataset.queries("test"), dataset.train_counts()
    keep = 1  # the second user: its target was trained on
    left = [item for item in range(1, dataset.num_items + 1) if counts[item] and item not in queries.gather(keep)[0]]
    negatives = np.tile([item for item in left if item != queries.targets(keep)[0]], (len(queries), 1))
    model = SASRec(SASRecConfig(d_model=8, num_heads=1, num_layers=1, max_len=6), num_items=dataset.num_items)
    for scorer in (Popularity.fit(dataset), model):
        full = rank_targets(scorer, dataset, queries)
        assert sampled_ranks(scorer, dataset, queries, negatives=negatives)[keep] == full[keep]


class Fixed:
    """A Scorer with one row of scores for everybody."""

    def __init__(self, row: list[float]) -> None:
        self.row = torch.tensor([-torch.inf, *row])

    def scores(self, batch: JaggedBatch, candidates: Tensor | None = None) -> Tensor:
        return self.row.expand(len(batch.lengths), -1) if candidates is None else self.row[candidates]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    """Two users with four targets each, one item twice among those of the second; all 12 items are trained on."""
    folder = tmp_path_factory.mktemp("several")
    rows = ["1 1 2 3 4 5 6 7 8", "2 5 6 7 8 9 10 9 11", "3 " + " ".join(str(1 + n % 12) for n in range(30))]
    (folder / "log.txt").write_text("\n".join(rows) + "\n")
    split = SplitConfig(protocol="ratio", target="all", valid_share=0.0, test_share=0.5)
    return prepare(folder / "log.txt", folder / "data", PrepareConfig(split=split))


@settings(max_examples=60, deadline=None)
@given(row=st.lists(st.sampled_from([-np.inf, -1.0, -0.0, 0.0, 1.0, 2.5]), min_size=12, max_size=12))
def test_with_several_targets_every_figure_is_a_share_and_the_ranks_are_the_full_ones(
    several: PreparedDataset, row: list[float]
) -> None:
    """But NDCG and MAP where targets tie with each other: a cutoff within the tie counts more than it has places."""
    queries, scorer, items = several.queries("test"), Fixed(row), set(range(1, 13))
    assert (several.train_counts()[1:] > 0).all()
    full = rank_targets(scorer, several, queries, "keep")
    for n in range(2):
        negatives = np.array([sorted(items - set(queries.targets(n).tolist()))] * len(queries))
        part = slice(*queries.target_offsets[n : n + 2])
        found = sampled_ranks(scorer, several, queries, negatives=negatives)[part]
        np.testing.assert_array_equal(found, full[part])
        if n == 0:  # of the second an item is asked for twice
            of_targets = [row[item - 1] for item in queries.targets(n).tolist()]
            has_ties = len(set(of_targets)) < len(of_targets)
            figures = metrics_per_query(found, np.array([0, len(found)]), (1, 3, 10))
            assert all(value[0] >= 0 for value in figures.values())
            bounded = {name for name in figures if not (has_ties and name.startswith(("ndcg", "map")))}
            assert all(figures[name][0] <= 1 for name in bounded)


def test_a_target_that_is_never_recommended_is_a_miss(several: PreparedDataset) -> None:
    queries = several.queries("test")
    first, last = queries.targets(0)[[0, -1]].tolist()
    scorer = Fixed([-np.inf if item == first else float(item == last) for item in range(1, 13)])
    negatives = np.setdiff1d(np.arange(1, 13), queries.targets(0))[None].repeat(len(queries), axis=0)
    ranks = sampled_ranks(scorer, several, queries, negatives=negatives)
    assert ranks[0] == np.inf
    assert ranks[len(queries.targets(0)) - 1] == 1.0


def test_a_user_who_saw_nearly_everything_is_refused(data: PreparedDataset) -> None:
    with pytest.raises(DataError, match="has only .* wanted 100 negatives"):
        draw_negatives(data, data.queries("test"), 100)
    with pytest.raises(ValueError, match="num_negatives=0"):
        draw_negatives(data, data.queries("test"), 0)
    with pytest.raises(ValueError, match="by='likes'"):
        draw_negatives(data, data.queries("test"), 5, "likes")  # type: ignore[arg-type]  # wrong on purpose


def test_the_rarest_items_are_drawn_too_when_all_are_asked_for(data: PreparedDataset) -> None:
    queries, counts = data.queries("test"), data.train_counts()
    known = int((counts > 0).sum())
    most = min(
        known - int((counts[np.union1d(queries.gather(n)[0], queries.targets(n))] > 0).sum())
        for n in range(len(queries))
    )
    drawn = draw_negatives(data, queries, most, "popularity")
    for n, row in enumerate(drawn):
        assert len(set(row.tolist())) == most
        assert not np.isin(row, np.union1d(queries.gather(n)[0], queries.targets(n))).any()
        assert (counts[row] > 0).all()


def test_sampled_figures_carry_their_protocol_everywhere(data: PreparedDataset) -> None:
    evaluation = evaluate_sampled({"popularity": Popularity.fit(data)}, data, num_negatives=7, by="popularity")
    assert "/sampled-7-popularity(seed=0)/" in evaluation.protocol
    assert "full-rank" not in evaluation.protocol
    assert all("ndcg@10" not in key or key.startswith("sampled-7-popularity ") for key in evaluation.table()[0])

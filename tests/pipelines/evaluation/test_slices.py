import json
from pathlib import Path

import numpy as np
import pytest

from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models.floors import Popularity
from recsys.pipelines.evaluation.evaluate import evaluate
from recsys.pipelines.evaluation.full_ranking import rank_targets
from recsys.pipelines.evaluation.metrics import metrics_per_query
from recsys.pipelines.evaluation.slices import Dimension, dimensions, slice_metrics

HOUR = 3600
START = 1_600_000_000


def timed(folder: Path) -> PreparedDataset:
    """u0 to u5 buy a every six hours, in turn; item b is two days old when u0 is asked for it."""
    rows = [(f"u{n % 6}", "a", START + HOUR * n) for n in range(120)]
    rows += [(f"u{n}", "b", START + HOUR * (100 + n)) for n in range(3)]
    rows += [("u0", "b", START + HOUR * 148), ("u1", "fresh", START + HOUR * 149), ("u2", "a", START + HOUR * 150)]
    folder.mkdir(exist_ok=True)
    text = "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows)
    (folder / "log.csv").write_text(text)
    return prepare(folder / "log.csv", folder / "data", PrepareConfig(split=SplitConfig(protocol="loo-novalid")))


def labels_of(dimension: Dimension | str) -> list[str]:
    assert isinstance(dimension, Dimension)
    return [dimension.labels[number] for number in dimension.number]


def test_every_query_and_target_has_its_slice(tmp_path: Path) -> None:
    dataset = timed(tmp_path)
    queries = dataset.queries("test")
    found = dimensions(dataset, queries)
    names = dataset.users.decode(queries.user)
    item_age = dict(zip(names, labels_of(found["item age"]), strict=True))
    idle = dict(zip(names, labels_of(found["user idle"]), strict=True))
    popularity = dict(zip(names, labels_of(found["target popularity"]), strict=True))
    assert item_age["u0"] == "1 day to 7 days"  # b was first bought 48 hours before
    assert item_age["u1"] == popularity["u1"] == "never trained"
    assert idle["u0"] == "1 day to 7 days"  # 148 - 114 hours
    assert idle["u3"] == "1 hour to 1 day"  # six hours apart
    assert popularity["u2"] == "head"
    assert popularity["u0"] == "tail"
    assert set(labels_of(found["history length"])) == {"10-19", "20-49"}  # 19 events, and 21 of those who bought b
    assert set(labels_of(found["user"])) == {"known"}


def test_slices_of_a_dimension_add_up_to_the_whole(tmp_path: Path) -> None:
    dataset = timed(tmp_path)
    queries, popularity = dataset.queries("test"), Popularity.fit(dataset)
    ranks = rank_targets(popularity, dataset, queries, "keep")
    whole = metrics_per_query(ranks, queries.target_offsets, (10,))["ndcg@10"].mean()
    report = slice_metrics({"popularity": ranks}, dataset, queries)
    assert not report.absent
    for found in report.slices.values():
        total = sum(part["n"] * part["scorers"]["popularity"]["ndcg@10"].mean for part in found.values())
        assert total / len(queries) == pytest.approx(whole)  # one target a query
    row = report.rows("ndcg@10")[0]
    assert list(row) == ["by", "slice", "n", "popularity"]


def test_the_head_holds_a_third_of_the_events_and_the_middle_the_second(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 1 1 1 1 1\n2 2 2 2 2\n3 3 3 3 3\n4 4 4 4 4\n5 5 5 5\n")
    split = SplitConfig(protocol="loo-novalid")
    dataset = prepare(tmp_path / "log.txt", tmp_path / "data", PrepareConfig(split=split))
    queries = dataset.queries("test")
    before = np.array([0, 4, 7, 10, 13])  # events of more popular items, of 15; a third is 5, two thirds are 10
    assert sorted(dataset.train_counts()[1:].tolist()) == [2, 3, 3, 3, 4]
    by = labels_of(dimensions(dataset, queries)["target popularity"])
    assert sorted(by) == sorted("head" if n < 5 else "mid" if n < 10 else "tail" for n in before)


def test_fewer_than_ten_queries_have_no_interval(circle: PreparedDataset, tmp_path: Path) -> None:
    few = timed(tmp_path).queries("test")
    report = slice_metrics({"p": np.ones(len(few))}, timed(tmp_path), few)
    assert report.slices["user"]["known"]["n"] == 6
    assert report.rows("hr@10")[0]["p"] == "1.0000 [-]"
    dataset = timed(tmp_path)
    plain = evaluate({"popularity": Popularity.fit(dataset)}, dataset, with_slices=True).to_dict()
    told = json.loads(json.dumps(plain))["slices"]["user"]["known"]["scorers"]["popularity"]["hr@10"]
    assert (told["low"], told["high"]) == (None, None)
    queries = circle.queries("test")
    ranks = np.random.default_rng(0).integers(1, 20, len(queries)).astype(float)
    for labels in slice_metrics({"p": ranks}, circle, queries).slices.values():
        for part in labels.values():
            assert (part["scorers"]["p"]["ndcg@10"].low is None) == (part["n"] < 10)


def test_without_times_ages_are_absent_by_name(circle: PreparedDataset, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 1 2 3 4\n2 2 3 4 1\n")
    dataset = prepare(tmp_path / "log.txt", tmp_path / "data", PrepareConfig(split=SplitConfig(protocol="loo")))
    queries = dataset.queries("test")
    report = slice_metrics({"p": np.ones(len(queries.target_items))}, dataset, queries)
    assert set(report.absent) == {"item age", "user idle"}
    assert all("ages need real times" in reason for reason in report.absent.values())
    queries = circle.queries("test")
    assert not slice_metrics({"p": np.ones(len(queries.target_items))}, circle, queries).absent


def test_a_query_is_asked_for_its_targets_in_the_slice_alone(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 1 1 1 1 1 1 2 1 9\n2 1 1 1 2 1 1 1 1 2\n")
    split = SplitConfig(protocol="ratio", target="all", test_share=0.3)
    dataset = prepare(tmp_path / "log.txt", tmp_path / "data", PrepareConfig(split=split))
    queries = dataset.queries("test")
    ranks = np.arange(1.0, len(queries.target_items) + 1)
    report = slice_metrics({"p": ranks}, dataset, queries)
    by = labels_of(dimensions(dataset, queries)["target popularity"])
    owner = np.repeat(np.arange(len(queries)), np.diff(queries.target_offsets))
    assert len(set(by)) > 1
    for label, part in report.slices["target popularity"].items():
        mine = [[ranks[t] for t in range(len(ranks)) if (owner[t], by[t]) == (n, label)] for n in range(len(queries))]
        mine = [own for own in mine if own]
        assert part["n"] == len(mine)
        assert part["scorers"]["p"]["mrr@10"].mean == pytest.approx(np.mean([1 / min(own) for own in mine]))

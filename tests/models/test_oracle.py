from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.errors import DataError
from recsys.features.batches import JaggedBatch, query_batches
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import FilterConfig, PrepareConfig, SplitConfig, prepare
from recsys.features.simulate.shop import ShopConfig, simulate
from recsys.models.floors import Popularity
from recsys.models.oracle import ShopOracle
from recsys.pipelines.evaluation.evaluate import evaluate
from recsys.pipelines.floors.fit import fit_floors

CONFIG = ShopConfig(
    seed=5, users=500, items=200, days=30, events_per_user=25, categories=10, styles=4, needs=6, segments=4
)


def prepared(world: Path, out: Path, target: str = "next", min_item_events: int = 1) -> PreparedDataset:
    config = PrepareConfig(
        filters=FilterConfig(min_item_events=min_item_events),
        split=SplitConfig(protocol="time", target=target),  # type: ignore[arg-type]  # one of the two
    )
    return prepare(world / "interactions.parquet", out, config)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate(CONFIG, tmp_path_factory.mktemp("shop") / "world")


@pytest.fixture(scope="module")
def dataset(world: Path) -> PreparedDataset:
    return prepared(world, world.parent / "data")


def questions(dataset: PreparedDataset) -> tuple[np.ndarray, JaggedBatch]:
    return next(iter(query_batches(dataset, dataset.queries("test"), max_len=500, tokens_per_batch=10**9)))


def test_the_score_of_what_came_is_its_stored_log_probability(world: Path, dataset: PreparedDataset) -> None:
    oracle, (rows, batch) = ShopOracle(world, dataset), questions(dataset)
    queries, truth = dataset.queries("test"), world / "truth"
    scores = oracle.scores(batch)
    stored = np.load(truth / "events_probability.npy")
    user_ids, offsets = np.load(truth / "user_ids.npy").astype(str), np.load(truth / "events_offsets.npy")
    times = np.load(truth / "events_times.npy")
    assert len(rows) > 50
    for row, number in enumerate(rows):
        user = user_ids.tolist().index(dataset.users.decode([int(queries.user[number])])[0])
        own = slice(offsets[user], offsets[user + 1])
        wanted = stored[own][times[own] == queries.query_time[number]]  # type: ignore[index]  # the data has times
        assert scores[row, queries.targets(number)[0]].exp().item() == pytest.approx(wanted.item(), rel=1e-9)


def test_probabilities_sum_to_one_over_what_can_still_be_had(world: Path, dataset: PreparedDataset) -> None:
    _, batch = questions(dataset)
    scores = ShopOracle(world, dataset).scores(batch)
    assert dataset.num_items == CONFIG.items
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(len(scores), dtype=torch.float64))
    for row, (first, end) in enumerate(zip(batch.offsets[:-1], batch.offsets[1:], strict=True)):
        assert (scores[row, batch.values[first:end]] == -torch.inf).all()
    assert (scores[:, 0] == -torch.inf).all()


def test_candidates_pick_columns(world: Path, dataset: PreparedDataset) -> None:
    _, batch = questions(dataset)
    oracle = ShopOracle(world, dataset)
    candidates = torch.randint(1, CONFIG.items + 1, (len(batch.lengths), 7), generator=torch.Generator().manual_seed(0))
    assert torch.equal(oracle.scores(batch, candidates), oracle.scores(batch).gather(1, candidates))


def test_a_filtered_dataset_has_fewer_columns_and_the_same_order(world: Path, tmp_path: Path) -> None:
    dataset = prepared(world, tmp_path / "data", min_item_events=40)
    assert dataset.num_items < CONFIG.items
    evaluation = evaluate({"oracle": ShopOracle(world, dataset), "popularity": Popularity.fit(dataset)}, dataset)
    assert evaluation.metrics["oracle"]["ndcg@10"].mean > 3 * evaluation.metrics["popularity"]["ndcg@10"].mean


def test_counting_stays_clearly_under_the_oracle(world: Path, dataset: PreparedDataset) -> None:
    evaluation = evaluate({**fit_floors(dataset), "oracle": ShopOracle(world, dataset)}, dataset)
    best = evaluation.metrics[str(evaluation.best_floor)]["ndcg@10"].mean
    assert evaluation.oracle == "oracle"
    assert best <= 0.8 * evaluation.metrics["oracle"]["ndcg@10"].mean
    assert 0.25 <= evaluation.metrics["oracle"]["ndcg@10"].mean <= 0.8
    assert evaluation.differences["oracle"]["ndcg@10"].low > 0


def test_in_the_null_world_popularity_is_all_there_is(tmp_path: Path) -> None:
    world = simulate(ShopConfig(seed=5, users=1500, items=300, intent_share=0.0), tmp_path / "world")
    dataset = prepared(world, tmp_path / "data")
    evaluation = evaluate({**fit_floors(dataset), "oracle": ShopOracle(world, dataset)}, dataset)
    assert evaluation.best_floor == "popularity"
    floor, oracle = evaluation.metrics["popularity"]["ndcg@10"], evaluation.metrics["oracle"]["ndcg@10"]
    assert floor.high > oracle.low
    assert floor.mean > 0.7 * oracle.mean


def test_questions_at_other_moments_are_refused(world: Path, dataset: PreparedDataset, tmp_path: Path) -> None:
    oracle = ShopOracle(world, dataset)
    with pytest.raises(DataError, match="user index 1 has no event at 17 us.*target rule next"):
        oracle.scores(JaggedBatch.from_sequences([[1, 2]], query_times=[17], users=[1]))
    with pytest.raises(DataError, match="user index 0 has no event"):
        oracle.scores(JaggedBatch.from_sequences([[1, 2]], query_times=[int(oracle.events.times[3])], users=[0]))
    with pytest.raises(DataError, match="needs users and query times"):
        oracle.scores(JaggedBatch.from_sequences([[1, 2]]))
    windows = prepared(world, tmp_path / "all", target="all")
    with pytest.raises(DataError, match="target rule next"):
        evaluate({"oracle": ShopOracle(world, windows)}, windows)


def test_another_log_is_refused(world: Path, circle: PreparedDataset) -> None:
    with pytest.raises(DataError, match="user 'u.*' of the dataset does not live in this world"):
        ShopOracle(world, circle)


@pytest.mark.parametrize("damage", ["cut", "gone", "pickled"])
def test_a_damaged_truth_is_refused_by_name(dataset: PreparedDataset, tmp_path: Path, damage: str) -> None:
    folder = simulate(CONFIG, tmp_path / "world")
    path = folder / "truth" / "events_items.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "gone":
        path.unlink()
    else:
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="events_items.npy: missing or damaged"):
        ShopOracle(folder, dataset)


def test_a_folder_that_is_no_shop_is_refused(dataset: PreparedDataset, tmp_path: Path) -> None:
    (tmp_path / "world.yaml").write_text("format: something\n")
    with pytest.raises(DataError, match="wanted format recsys-shop, version 1"):
        ShopOracle(tmp_path, dataset)

"""What is served with event types and unseen items equals what was evaluated."""

from pathlib import Path

import polars as pl
import pytest
import torch
from torch import nn

from recsys.features.batches import JaggedBatch, query_batches
from recsys.features.dataset import PreparedDataset
from recsys.features.journal.journal import Event, Journal
from recsys.models import registry
from recsys.models.bundle import load_bundle, save_bundle
from recsys.models.ranking.ranker import History, Ranker
from recsys.models.ranking.score import scores_of
from recsys.pipelines.recommend import recommend_users
from recsys.serving.schemas import RecommendRequest
from recsys.serving.settings import ServingSettings
from recsys.serving.state import RankingService
from tests.worlds import typed_world

CONFIG = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "max_len": 6}


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    return typed_world(tmp_path_factory.mktemp("worlds"), users=40)


@pytest.fixture(scope="module", params=["sasrec", "bert4rec"])
def bundle(request: pytest.FixtureRequest, typed: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(request.param, typed, tmp_path_factory.mktemp("typed") / "bundle", id_dropout=0.1)


def saved(name: str, typed: PreparedDataset, path: Path, id_dropout: float) -> Path:
    """Random weights, large enough that an event type of another event would be seen."""
    torch.manual_seed(1)
    inputs = {"event_types": True, "id_dropout": id_dropout}
    config = registry.fitted_config(name, {**CONFIG, "inputs": inputs}, typed)
    model = registry.build(name, config, typed.num_items)
    assert isinstance(model, nn.Module)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
    return save_bundle(
        path,
        model=model,
        name=name,
        config=config,
        items=typed.items,
        popularity=typed.train_counts(),
        metrics={},
        data={},
        golden_histories=[["i1", "i2"]],
    )


def histories_of(dataset: PreparedDataset) -> dict[str, list[tuple[str, str, int]]]:
    """Raw user -> (item, event type, time in us) of every event but the last, which the test split asks for."""
    queries, names = dataset.queries("test"), dataset.event_type_names
    found = {}
    for row in range(len(queries)):
        shard, part = dataset.shards[queries.shard[row]], slice(queries.start[row], queries.end[row])
        assert shard.event_types is not None
        assert shard.times is not None
        items = dataset.items.decode(shard.items[part])
        types = [names[number - 1] for number in shard.event_types[part].tolist()]
        (user,) = dataset.users.decode([int(queries.user[row])])
        found[str(user)] = list(zip(map(str, items), types, shard.times[part].tolist(), strict=True))
    return found


def evaluated(bundle: Path, dataset: PreparedDataset) -> dict[str, dict[str, float]]:
    """Raw user -> score of every item the evaluation would rank."""
    loaded = load_bundle(bundle)
    vectors, queries = loaded.model.item_vectors().double(), dataset.queries("test")
    names = [str(raw) for raw in dataset.items.decode(range(1, dataset.num_items + 1))]
    found = {}
    for rows, batch in query_batches(dataset, queries, max_len=loaded.model.max_len):
        scores = scores_of(loaded.model, batch, vectors)[:, 1:].numpy()
        for place, row in enumerate(rows.tolist()):
            (user,) = dataset.users.decode([int(queries.user[row])])
            found[str(user)] = dict(zip(names, scores[place].tolist(), strict=True))
    return found


def test_the_service_scores_a_users_journal_as_the_evaluation_did(
    bundle: Path, typed: PreparedDataset, tmp_path: Path
) -> None:
    wanted, histories = evaluated(bundle, typed), histories_of(typed)
    service = RankingService(ServingSettings(bundle=str(bundle), journal=tmp_path / "journal"))
    service.start()
    with Journal(tmp_path / "other") as other:
        for journal in (service._opened(), other):
            journal.append(
                [
                    Event(user_id=user, item_id=item, time_us=time_us, event_type=kind)
                    for user, events in histories.items()
                    for item, kind, time_us in events
                ]
            )
    try:
        for user in list(histories)[:20]:
            answer = service.recommend(RecommendRequest(user_id=user, k=5), "request")
            assert answer.source == "model"
            for item in answer.items:
                assert item.score == pytest.approx(wanted[user][str(item.item_id)], abs=1e-5)
    finally:
        service.close()
    recommend_users(bundle, list(histories), None, tmp_path / "other", 5, tmp_path / "out.parquet")
    for user, item, score in pl.read_parquet(tmp_path / "out.parquet").select("user_id", "item_id", "score").rows():
        assert score == pytest.approx(wanted[user][item], abs=1e-5)


def test_recommending_to_a_dataset_reads_its_event_types(bundle: Path, typed: PreparedDataset, tmp_path: Path) -> None:
    ranker = Ranker(load_bundle(bundle))
    recommend_users(bundle, None, typed.path, None, 3, tmp_path / "out.parquet")
    rows = pl.read_parquet(tmp_path / "out.parquet").select("user_id", "item_id", "score").rows()
    found: dict[str, dict[str, float]] = {}
    for user, item, score in rows:
        found.setdefault(user, {})[item] = score
    shard = typed.shards[0]
    assert shard.event_types is not None
    for row, user in enumerate(typed.users.decode(shard.users[:10])):
        part = slice(shard.offsets[row], shard.offsets[row + 1])
        items = typed.items.decode(shard.items[part])
        types = [typed.event_type_names[number - 1] for number in shard.event_types[part].tolist()]
        (told,) = ranker.recommend([History(items, event_types=types)], 3)
        assert found[str(user)] == pytest.approx(dict(zip(told.item_ids, told.scores, strict=True)), abs=1e-5)


def test_a_type_changes_the_answer_and_an_unknown_one_is_none(bundle: Path) -> None:
    ranker, items = Ranker(load_bundle(bundle)), ["i1", "i12", "i23"]
    bare, none, strange, buy, cart = (
        ranker.rank(History(items, event_types=types), ["i5", "i35"]).scores
        for types in (None, [None] * 3, ["wish"] * 3, ["buy"] * 3, ["cart"] * 3)
    )
    assert bare == none == strange
    assert buy != bare
    assert buy != cart


def test_types_stay_with_their_events_where_items_are_unknown_or_too_many(bundle: Path, typed: PreparedDataset) -> None:
    """An unseen item stands as the unknown one, with its own type and place."""
    ranker = Ranker(load_bundle(bundle))
    model = ranker.bundle.model
    items = ["i3", "i1", "i2", "i9", "?", "i7", "i8", "i4"]
    types = ["buy", "view", "cart", "like", "buy", "view", "view", "cart"]
    answer = ranker.rank(History(items, event_types=types), ["i5", "i35"])
    numbers = [typed.event_type_names.index(kind) + 1 for kind in types]
    batch = JaggedBatch.from_sequences([typed.items.encode(items)], event_types=[numbers], max_len=model.max_len)
    scores = scores_of(model, batch, model.item_vectors().double())[0]
    wanted = dict(zip(["i5", "i35"], scores[torch.from_numpy(typed.items.encode(["i5", "i35"]))].tolist(), strict=True))
    assert answer.unknown == ["?"]
    assert dict(zip(answer.item_ids, answer.scores, strict=True)) == pytest.approx(wanted, abs=1e-6)


def test_without_an_unknown_item_an_unseen_id_is_left_out_with_its_type(typed: PreparedDataset, tmp_path: Path) -> None:
    ranker = Ranker(load_bundle(saved("sasrec", typed, tmp_path / "bundle", id_dropout=0.0)))
    with_unseen = ranker.rank(History(["i3", "?", "i7"], event_types=["buy", "cart", "view"]), ["i5", "i35"])
    without = ranker.rank(History(["i3", "i7"], event_types=["buy", "view"]), ["i5", "i35"])
    assert with_unseen.scores == pytest.approx(without.scores, abs=1e-6)
    assert with_unseen.item_ids == without.item_ids

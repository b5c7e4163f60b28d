import asyncio
import itertools
import os
from pathlib import Path

import httpx
import numpy as np
import polars as pl
import pytest
import torch

from recsys.errors import BundleError, DataError, InputError, StorageError
from recsys.features.batches import query_batches
from recsys.features.dataset import PreparedDataset
from recsys.features.journal.journal import Event, Journal
from recsys.features.prepare import PrepareConfig, prepare
from recsys.models import registry
from recsys.models.bundle import load_bundle, save_bundle
from recsys.models.ranking.ranker import History, Ranker
from recsys.models.ranking.score import scores_of
from recsys.pipelines import recommend as module
from recsys.pipelines.evaluation.evaluate import rank_targets
from recsys.pipelines.recommend import recommend_sequence, recommend_users
from recsys.serving.app import create_app
from recsys.serving.settings import ServingSettings
from recsys.serving.state import RankingService
from tests.full_disk import most_bytes_of_a_file

CONFIG = {"d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 16, "max_len": 8}
COLUMNS = ["user_id", "item_id", "score", "rank", "source"]


@pytest.fixture(scope="module")
def bundle(circle: PreparedDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SASRec with random weights over the circle's items, which reads shorter histories than some users have."""
    torch.manual_seed(1)
    return save_bundle(
        tmp_path_factory.mktemp("recommend") / "bundle",
        model=registry.build("sasrec", CONFIG, circle.num_items),
        name="sasrec",
        config=CONFIG,
        items=circle.items,
        popularity=circle.train_counts(),
        metrics={},
        data={"data_hash": circle.data_hash},
        golden_histories=[["i1", "i2"]],
    )


def read(path: Path) -> pl.DataFrame:
    if path.suffix == ".parquet":
        return pl.read_parquet(path)
    return pl.read_csv(path) if path.suffix == ".csv" else pl.read_ndjson(path)


def all_events(dataset: PreparedDataset, user: str) -> list[str]:
    index = int(dataset.users.encode([user])[0])
    for shard in dataset.shards:
        for row in np.flatnonzero(shard.users == index).tolist():
            return [str(i) for i in dataset.items.decode(shard.items[shard.offsets[row] : shard.offsets[row + 1]])]
    raise AssertionError(user)


def test_served_batch_and_evaluated_scores_and_ranks_are_the_same(
    circle: PreparedDataset, bundle: Path, tmp_path: Path
) -> None:
    loaded, queries = load_bundle(bundle), circle.queries("test")
    names = [str(user) for user in circle.users.decode(queries.user)]
    with Journal(tmp_path / "journal") as journal:
        for number, name in enumerate(names):
            indices, times = queries.gather(number)
            assert times is not None
            pairs = zip(map(str, circle.items.decode(indices)), times.tolist(), strict=True)
            journal.append([Event(user_id=name, item_id=item, time_us=time_us) for item, time_us in pairs])
    out = tmp_path / "out.parquet"
    recommend_users(bundle, names, None, tmp_path / "journal", circle.num_items, out)
    table = read(out)
    batch = {(user, item): score for user, item, score, _, _ in table.iter_rows()}
    place = {(user, item): rank for user, item, _, rank, _ in table.iter_rows()}

    served = _serve(bundle, tmp_path / "journal", names, circle.num_items)
    assert served == pytest.approx(batch, rel=1e-6, abs=1e-6)

    evaluated = {}
    for numbers, jagged in query_batches(circle, queries, max_len=loaded.model.max_len, tokens_per_batch=300):
        scores = scores_of(loaded.model, jagged, loaded.model.item_vectors().double()).numpy()
        for row, number in enumerate(numbers.tolist()):
            for index, item in enumerate(circle.items.decode(np.arange(1, circle.num_items + 1)), start=1):
                evaluated[names[number], item] = float(scores[row, index])
    assert {key: evaluated[key] for key in batch} == pytest.approx(batch, rel=1e-6, abs=1e-6)

    targets = circle.items.decode(queries.target_items)
    expected = [float(place.get((user, item), np.inf)) for user, item in zip(names, targets, strict=True)]
    assert rank_targets(loaded.model, circle, queries, "exclude").tolist() == expected


def _serve(bundle: Path, journal: Path, users: list[str], k: int) -> dict[tuple[str, str], float]:
    service = RankingService(ServingSettings(bundle=str(bundle), journal=journal))
    service.start()

    async def ask() -> dict[tuple[str, str], float]:
        transport = httpx.ASGITransport(create_app(service))
        answers: dict[tuple[str, str], float] = {}
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for user in users:
                answer = (await client.get(f"/v1/recommend/{user}?k={k}")).json()
                assert answer["source"] == "model"
                answers |= {(user, item["item_id"]): item["score"] for item in answer["items"]}
        return answers

    try:
        return asyncio.run(ask())
    finally:
        service.close()


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_every_user_of_a_dataset_is_answered_from_all_of_their_events(
    circle: PreparedDataset, bundle: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "USERS_PER_BATCH", 40)
    out = tmp_path / f"out{suffix}"
    counts = recommend_users(bundle, None, circle.path, None, 3, out)
    table = read(out)
    assert table.columns == COLUMNS
    assert table["user_id"].unique(maintain_order=True).to_list() == circle.users.decode(range(1, circle.num_users + 1))
    assert (counts["users"], counts["rows"], counts["popularity"]) == (circle.num_users, table.height, 0)
    ranker = Ranker(load_bundle(bundle))
    for (user,), rows in itertools.islice(table.group_by("user_id", maintain_order=True), 20):
        (expected,) = ranker.recommend([History(all_events(circle, str(user)))], 3)
        assert rows["item_id"].to_list() == expected.item_ids
        assert rows["score"].to_list() == pytest.approx(expected.scores, rel=1e-6)
        assert rows["rank"].to_list() == [1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_users_that_the_model_never_saw_are_answered(circle: PreparedDataset, bundle: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        journal.append([Event(user_id=12, item_id="i3", time_us=1), Event(user_id="x", item_id="never", time_us=1)])
    out = tmp_path / "out.csv"
    counts = recommend_users(bundle, ["12", "nobody", "x", 12], None, tmp_path / "journal", 2, out)
    table = pl.read_csv(out, schema_overrides={"user_id": pl.String})
    assert table["user_id"].to_list() == ["12", "12", "nobody", "nobody", "x", "x"]
    assert table["source"].to_list() == ["model"] * 2 + ["popularity"] * 4
    assert counts["popularity"] == 2
    popular = (-circle.train_counts()).argsort(kind="stable")[:2]
    assert table["item_id"].to_list()[2:4] == circle.items.decode(popular)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (["7", "8", "99"], [7, 8, 99]),
        ([8, 7], [8, 7]),
        (["7", "new"], ["7", "new"]),
        (["07", 7], ["07", "7"]),
        (None, [7, 8]),
        ([5, 6], [5, 6]),
        (["5"], ["5"]),
    ],
)
def test_users_are_named_as_the_source_names_them(
    bundle: Path, tmp_path: Path, asked: list[int | str] | None, expected: list[int | str]
) -> None:
    with Journal(tmp_path / "journal") as journal:
        journal.append([Event(user_id=user, item_id="i3", time_us=1) for user in (7, 8)])
    recommend_users(bundle, asked, None, tmp_path / "journal", 1, tmp_path / "out.parquet")
    assert read(tmp_path / "out.parquet")["user_id"].to_list() == expected


def test_a_journal_is_read_while_a_server_writes_it(bundle: Path, tmp_path: Path) -> None:
    with Journal(tmp_path / "journal") as journal:
        journal.append([Event(user_id=1, item_id="i3")])
        counts = recommend_users(bundle, None, None, tmp_path / "journal", 1, tmp_path / "out.jsonl")
    assert counts["users"] == 1


def test_a_raw_sequence_is_answered_and_its_unknown_items_reported(bundle: Path) -> None:
    answer = recommend_sequence(bundle, ["i3", "never", "i4"], 4)
    (expected,) = Ranker(load_bundle(bundle)).recommend([History(["i3", "i4"])], 4)
    assert (answer.item_ids, answer.scores) == (expected.item_ids, expected.scores)
    assert answer.unknown == ["never"]


def test_what_is_asked_wrongly_is_refused_and_an_older_file_kept(
    circle: PreparedDataset, bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("older")
    data, journal = circle.path, tmp_path / "none"
    with pytest.raises(InputError, match="k=0: wanted at least 1"):
        recommend_users(bundle, None, data, None, 0, out)
    with pytest.raises(InputError, match="k=0"):
        recommend_sequence(bundle, ["i1"], 0)
    for one, other in ((data, journal), (None, None)):
        with pytest.raises(InputError, match="give one of --data and --journal"):
            recommend_users(bundle, None, one, other, 1, out)
    with pytest.raises(DataError, match="no journal here"):
        recommend_users(bundle, None, None, journal, 1, out)
    with pytest.raises(DataError, match="no such folder"):
        recommend_users(bundle, None, journal, None, 1, out)
    with pytest.raises(BundleError, match="no bundle there"):
        recommend_users(tmp_path / "none", None, data, None, 1, out)
    with pytest.raises(InputError, match=r"unknown suffix '.txt'"):
        recommend_users(bundle, None, data, None, 1, tmp_path / "out.txt")
    with pytest.raises(InputError, match="no user to recommend to"):
        recommend_users(bundle, [], data, None, 1, out)
    with pytest.raises(InputError, match="user_id: 0 characters"):
        recommend_users(bundle, [""], data, None, 1, out)
    assert out.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_a_file_that_cannot_be_written_is_one_line_and_leaves_nothing(
    circle: PreparedDataset, bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"out.csv: cannot be written \(.*\); name another place"):
        recommend_users(bundle, None, circle.path, None, 1, tmp_path / "file" / "out.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        recommend_users(bundle, None, circle.path, None, 1, tmp_path / "folder.csv")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.csv"]


def test_progress_is_said_in_users_a_second(
    circle: PreparedDataset, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "USERS_PER_BATCH", 50)
    monkeypatch.setattr(module, "SAY_EVERY_S", 0.0)
    said: list[str] = []
    recommend_users(bundle, None, circle.path, None, 1, tmp_path / "out.csv", said.append)
    assert any(line.startswith("100 of 150 users (") and "users/s" in line for line in said)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_full_disk_is_no_fault_of_the_caller_and_keeps_the_older_file(
    circle: PreparedDataset, bundle: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"out{suffix}"
    out.write_text("older")
    message = r"cannot be written \(.*File too large.*\); free space or name"
    with most_bytes_of_a_file(1_000), pytest.raises(StorageError, match=message) as caught:
        recommend_users(bundle, None, circle.path, None, 20, out)
    assert not isinstance(caught.value, InputError)
    assert out.read_text() == "older"
    assert os.listdir(tmp_path) == [out.name]


def test_histories_without_an_item_of_the_bundle_are_warned_of(
    circle: PreparedDataset, bundle: Path, tmp_path: Path
) -> None:
    log = tmp_path / "other.csv"
    log.write_text("user,item\n" + "".join(f"u{user},z{(user + n) % 7}\n" for user in range(9) for n in range(6)))
    other = prepare(log, tmp_path / "other", PrepareConfig())
    said: list[str] = []
    counts = recommend_users(bundle, None, other.path, None, 1, tmp_path / "out.csv", said.append)
    assert counts["popularity"] == counts["users"] == 9
    (warning,) = [line for line in said if line.startswith("warning: ")]
    assert "none of the 9 users" in warning
    assert str(other.path) in warning
    said.clear()
    recommend_users(bundle, None, circle.path, None, 1, tmp_path / "out.csv", said.append)
    assert not [line for line in said if "warning" in line]

import dataclasses
import hashlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.errors import DataError, InputError, StorageError
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.features.simulate.shop import ShopConfig, simulate
from recsys.features.simulate.shop_words import CATEGORIES, PRICES, STYLES


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, small_config: ShopConfig) -> Path:
    return simulate(small_config, tmp_path_factory.mktemp("shop") / "world")


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes(world: Path, small_config: ShopConfig, tmp_path: Path) -> None:
    again = simulate(small_config, tmp_path / "again")
    assert digests(again) == digests(world)
    other = simulate(dataclasses.replace(small_config, seed=4), tmp_path / "other")
    assert digests(other)["interactions.parquet"] != digests(world)["interactions.parquet"]


def test_the_log_is_a_log(world: Path, small_config: ShopConfig) -> None:
    log = pl.read_parquet(world / "interactions.parquet")
    assert log.columns == ["user_id", "item_id", "timestamp", "event_type"]
    assert log.schema["timestamp"] == pl.Datetime("us", "UTC")
    assert log["event_type"].unique().to_list() == ["click"]
    assert log["timestamp"].is_sorted()
    assert log["user_id"].n_unique() == small_config.users
    assert (log.group_by("user_id").agg(pl.col("timestamp").is_duplicated().any())["timestamp"]).sum() == 0
    assert len(log) == len(np.load(world / "truth" / "events_items.npy"))


def test_events_lie_within_the_shelf_life_of_their_items(world: Path) -> None:
    log, items = pl.read_parquet(world / "interactions.parquet"), pl.read_parquet(world / "items.parquet")
    joined = log.join(items, on="item_id", how="left")
    assert joined["title"].null_count() == 0
    assert (joined["timestamp"] >= joined["available_from"]).all()
    far = datetime(2100, 1, 1, tzinfo=UTC)
    assert (joined["timestamp"] < joined["available_until"].fill_null(far)).all()
    assert 0 < items["available_until"].null_count() < len(items)


def test_titles_and_prices_mean_what_the_item_is(world: Path) -> None:
    items = pl.read_parquet(world / "items.parquet")
    truth = {name: np.load(world / "truth" / f"world_{name}.npy") for name in ("category", "style", "price")}
    nouns, styles, prices = (list(words.values()) for words in (CATEGORIES, STYLES, PRICES))
    for row, title in enumerate(items["title"]):
        assert title.startswith(prices[truth["price"][row]])
        assert any(f" {word} " in title for word in styles[truth["style"][row]])
        assert title.endswith(nouns[truth["category"][row]])
    assert items["category"].to_list() == [list(CATEGORIES)[c] for c in truth["category"]]
    for category in range(3):
        mine = truth["category"] == category
        means = [items["price"].to_numpy()[mine & (truth["price"] == level)].mean() for level in range(3)]
        assert means == sorted(means)


def test_no_word_belongs_to_two_values() -> None:
    words = [word for group in (CATEGORIES, STYLES, PRICES) for value in group.values() for word in value]
    assert max(Counter(words).values()) == 1


def test_every_event_keeps_its_probability_and_terms(world: Path) -> None:
    probability = np.load(world / "truth" / "events_probability.npy")
    terms = np.load(world / "truth" / "events_terms.npy")
    seen = np.load(world / "truth" / "events_seen_mass.npy")
    assert ((probability > 0) & (probability <= 1)).all()
    np.testing.assert_allclose(terms.sum(1) / (1 - seen), probability)


def test_a_fifth_of_the_users_of_the_last_days_is_new(tmp_path: Path) -> None:
    world = simulate(ShopConfig(users=1500), tmp_path / "world")
    config = PrepareConfig(split=SplitConfig(protocol="time", target="next"))
    dataset = prepare(world / "interactions.parquet", tmp_path / "data", config)
    queries, train = dataset.queries("test"), dataset.train_slices()
    is_new = ~np.isin(queries.user, train.user[train.lengths > 0])
    assert is_new.mean() > 0.2
    assert (is_new.sum() + queries.num_cold) / (len(queries) + queries.num_cold) > 0.3


def test_an_older_world_is_replaced_and_anything_else_is_kept(tmp_path: Path, small_config: ShopConfig) -> None:
    config = dataclasses.replace(small_config, users=20)
    out = simulate(config, tmp_path / "world")
    told: list[str] = []
    simulate(dataclasses.replace(config, seed=9), out, told.append)
    assert "20 users, 160 items" in told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("ten years of work")
    for foreign in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        with pytest.raises(DataError, match="is no simulated shop and will not be replaced"):
            simulate(config, foreign)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "ten years of work"


def test_a_world_that_cannot_be_written_leaves_the_older_one(
    tmp_path: Path, small_config: ShopConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = simulate(dataclasses.replace(small_config, users=20), tmp_path / "world")
    before, save, count = digests(out), np.save, [0]

    def full_disk(*arguments: Any) -> None:
        count[0] += 1
        if count[0] > 5:
            raise OSError(28, "No space left on device")
        save(*arguments)

    monkeypatch.setattr(np, "save", full_disk)
    with pytest.raises(StorageError, match="cannot be written .No space left on device.; free space or name another"):
        simulate(dataclasses.replace(small_config, users=20, seed=8), out)
    assert digests(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\); name another place"):
        simulate(dataclasses.replace(small_config, users=20), tmp_path / "file" / "world")

"""What preparation counts of every set of interactions in RECSYS_DATA, against the figures in the set's own README."""

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.prepare import FilterConfig, PrepareConfig, ReadConfig, SplitConfig, prepare
from recsys.features.readers import read_interactions

pytestmark = pytest.mark.skipif(
    not os.environ.get("RECSYS_DATA"), reason="RECSYS_DATA names no folder of real datasets"
)

MARK = "Statistics (measured): "
PLAYS = ("user_id", "timestamp", "artist_key", "item_id", "track_key", "track")


@dataclass(frozen=True)
class Case:
    """One set as a user would prepare it, and where its README states the figures."""

    file: str
    read: ReadConfig = field(default_factory=ReadConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    figures: str | None = None  # key of the README's JSON that holds them; None: the JSON itself


CASES = {
    "ml-1m": Case("ml-1m/sequences.parquet"),
    "ml-1m, items of 5 events": Case(
        "ml-1m/sequences.parquet", filters=FilterConfig(min_item_events=5), figures="after_item_5core"
    ),
    "ml-100k": Case("ml-100k/interactions.parquet"),
    "amazon-beauty": Case("amazon-beauty/sequences.parquet"),
    "amazon-beauty-bert4rec": Case("amazon-beauty-bert4rec/sequences.parquet"),
    "amazon-sports": Case("amazon-sports/sequences.parquet"),
    "amazon-instruments": Case("amazon-instruments/sequences.parquet"),
    "yelp-text": Case("yelp-text/sequences.parquet"),
    "lastfm-s3rec": Case("lastfm-s3rec/sequences.parquet"),
    "lastfm-1k-piece, artists": Case(
        "lastfm-1k-piece/lastfm1k_piece.tsv.gz", read=ReadConfig(format="tsv", names=PLAYS), figures="artist"
    ),
    "lastfm-hetrec2k, tag events": Case(
        "lastfm-hetrec2k/tag_events.parquet", read=ReadConfig(order="rows"), figures="tag_events"
    ),
    "lastfm-hetrec2k, play counts": Case("lastfm-hetrec2k/play_counts.parquet", figures="play_counts"),
}


@pytest.mark.parametrize("name", CASES)
def test_counts_of_a_set_are_those_of_its_readme(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    dataset = prepare(_file(case.file), tmp_path / "data", _config(case.read, case.filters))
    stated = _stated(case.file)
    _agree(dataset, stated if case.figures is None else stated[case.figures])


def test_every_readme_that_counts_interactions_has_its_case() -> None:
    readmes = {path.parent.name: path.read_text(encoding="utf-8") for path in _data().glob("*/README.md")}
    counted = {name for name, text in readmes.items() if MARK in text and "repeat_share" in text}
    assert counted
    assert counted <= {case.file.split("/")[0] for case in CASES.values()}


def test_tracks_named_by_artist_and_title_are_counted_as_the_readme_says(tmp_path: Path) -> None:
    file = "lastfm-1k-piece/lastfm1k_piece.tsv.gz"
    plays = pl.read_csv(_file(file), separator="\t", has_header=False, new_columns=PLAYS, quote_char=None)
    tracks = plays.select("user_id", "timestamp", item_id=pl.col("item_id") + " / " + pl.col("track"))
    tracks.write_csv(tmp_path / "tracks.tsv", separator="\t")
    _agree(prepare(tmp_path / "tracks.tsv", tmp_path / "data", _config()), _stated(file)["track"])


def test_tag_events_dated_by_their_parts_lose_only_the_dates_before_1970(tmp_path: Path) -> None:
    file = "lastfm-hetrec2k/tag_events.parquet"
    events, stated = pl.read_parquet(_file(file)), _stated(file)
    dated = events.select("user_id", "item_id", timestamp=pl.date("year", "month", "day"))
    dated.write_parquet(tmp_path / "dated.parquet")
    result = read_interactions(tmp_path / "dated.parquet", ReadConfig())
    assert result.order == "time"
    assert result.counts["good"] + result.counts["rejected"] == stated["tag_events"]["actions"]
    assert set(result.rejected["reason"]) == {"timestamp is negative"}
    assert result.rejected["line"].to_list() == [n + 1 for n, year in enumerate(events["year"]) if year < 1970]
    years = result.interactions["timestamp"].cast(pl.Datetime("us")).dt.year()
    assert [events["year"].min(), years.max()] == stated["years"]
    assert (years >= 2005).sum() == stated["rows_year_ge_2005"]


def test_play_counts_are_read_as_weights_and_sum_to_the_plays_of_the_readme() -> None:
    file = "lastfm-hetrec2k/play_counts.parquet"
    result = read_interactions(_file(file), ReadConfig(columns={"weight": "play_count"}))
    assert result.interactions["weight"].sum() == _stated(file)["total_plays"]


@pytest.mark.parametrize("part", ["valid", "test"])
def test_targets_of_slices_are_counted_as_the_readme_says(part: str) -> None:
    # Rows of a history and its next item: the next items are interactions, the histories overlap and are none.
    file = f"amazon-text-scientific/{part}.parquet"
    stated = _stated(file)[part]
    result = read_interactions(_file(file), ReadConfig(order="rows"))
    assert result.counts["events"] == stated["rows"]
    assert result.interactions["user_id"].n_unique() == stated["users"]
    assert result.interactions["item_id"].n_unique() == stated["target_items"]


def test_impressions_without_users_are_refused_by_the_column_that_is_missing() -> None:
    # Each row has hashed features of a user, and no user: there are no sequences to prepare.
    with pytest.raises(DataError, match="no column for user_id"):
        read_interactions(_file("open-bandit/random-all.parquet"), ReadConfig())


def _data() -> Path:
    return Path(os.environ["RECSYS_DATA"])


def _file(name: str) -> Path:
    if not (_data() / name).is_file():
        pytest.skip(f"RECSYS_DATA holds no {name}")
    return _data() / name


def _config(read: ReadConfig | None = None, filters: FilterConfig | None = None) -> PrepareConfig:
    return PrepareConfig(
        read=read or ReadConfig(), filters=filters or FilterConfig(), split=SplitConfig(protocol="loo")
    )


def _stated(file: str) -> dict[str, Any]:
    """The figures in the README beside this file."""
    readme = _file(file).with_name("README.md").read_text(encoding="utf-8")
    (line,) = (line for line in readme.splitlines() if line.startswith(MARK))
    figures: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return figures


def _agree(dataset: PreparedDataset, stated: dict[str, Any]) -> None:
    """Every figure stated of a table of interactions is what the dataset holds; at least the counts are stated."""
    found = _measured(dataset)
    assert {"users", "items", "actions", "mean_len", "median_len", "min_len", "max_len", "repeat_share"} <= set(stated)
    names = [name for name, value in stated.items() if not isinstance(value, dict)]
    assert {name: found[name] for name in names} == {name: stated[name] for name in names}


def _measured(dataset: PreparedDataset) -> dict[str, Any]:
    lengths = np.concatenate([np.diff(shard.offsets) for shard in dataset.shards])
    pairs = sum(
        len(np.unique(np.repeat(shard.users, np.diff(shard.offsets)) * (dataset.num_items + 1) + shard.items))
        for shard in dataset.shards
    )
    events, users, items = int(lengths.sum()), dataset.num_users, dataset.num_items
    return {
        "users": users,
        "items": items,
        "actions": events,
        "mean_len": round(events / users, 2),
        "median_len": float(np.median(lengths)),
        "min_len": int(lengths.min()),
        "max_len": int(lengths.max()),
        "users_len_ge_50": int((lengths >= 50).sum()),
        "users_len_ge_200": int((lengths >= 200).sum()),
        "repeat_share": round(1 - pairs / events, 4),
        "density_pct": round(100 * events / (users * items), 4),
        **_span(dataset),
    }


def _span(dataset: PreparedDataset) -> dict[str, str]:
    times = [shard.times for shard in dataset.shards if shard.times is not None]
    if not times:
        return {}
    ends = {"first": min(part.min() for part in times), "last": max(part.max() for part in times)}
    return {name: datetime.fromtimestamp(int(us) / 1e6, UTC).date().isoformat() for name, us in ends.items()}

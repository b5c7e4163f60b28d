"""Real datasets, where RECSYS_DATA names them, have the counts that the literature gives."""

import os
import time
from pathlib import Path

import polars as pl
import pytest

from recsys.features.prepare import FilterConfig, PrepareConfig, ReadConfig, prepare


def _real(name: str) -> Path:
    folder = os.environ.get("RECSYS_DATA", "")
    path = Path(folder) / name
    if not folder or not path.is_file():
        pytest.skip(f"RECSYS_DATA names no folder with {name}")
    return path


@pytest.mark.parametrize(
    ("name", "filters", "protocol", "counts"),
    [
        ("ml-1m/sequences.parquet", FilterConfig(min_item_events=5), "loo", (6040, 3416, 999_611)),
        ("ml-1m/sequences.parquet", FilterConfig(), "loo", (6040, 3706, 1_000_209)),
        ("amazon-beauty/sequences.parquet", FilterConfig(), "loo", (22_363, 12_101, 198_502)),
        ("amazon-beauty/sequences.parquet", FilterConfig(k_core=5), "loo", (22_363, 12_101, 198_502)),
        ("amazon-beauty-bert4rec/sequences.parquet", FilterConfig(), "loo", (40_226, 54_542, 353_962)),
        ("ml-100k/interactions.parquet", FilterConfig(), "time", (943, 1682, 100_000)),
        ("yelp-text/sequences.parquet", FilterConfig(), "loo", (30_431, 20_033, 316_354)),
    ],
)
def test_real_data_has_the_counts_of_its_readme(
    name: str, filters: FilterConfig, protocol: str, counts: tuple[int, int, int], tmp_path: Path
) -> None:
    dataset = prepare(_real(name), tmp_path / "data", PrepareConfig(filters=filters))
    assert (dataset.num_users, dataset.num_items, dataset.num_events) == counts
    assert dataset.protocol == protocol


def test_ml_100k_by_time_trains_on_four_fifths(tmp_path: Path) -> None:
    dataset = prepare(_real("ml-100k/interactions.parquet"), tmp_path / "data", PrepareConfig())
    assert dataset.manifest["time_unit"] == "s"
    assert dataset.train_slices().lengths.sum() == pytest.approx(80_000, abs=50)
    assert dataset.manifest["leakage"]["training_events_after_a_cut"] == 0


def test_ml_1m_as_text_is_read_and_prepared_in_seconds(tmp_path: Path) -> None:
    frame = pl.read_parquet(_real("ml-1m/sequences.parquet"))
    fields = ["user_id", "item_id", pl.lit(0), "position"]
    text = frame.select(pl.concat_str(fields, separator="::")).to_series().str.join("\n").item()
    (tmp_path / "ratings.dat").write_text(text)
    started = time.perf_counter()
    dataset = prepare(
        tmp_path / "ratings.dat", tmp_path / "data", PrepareConfig(filters=FilterConfig(min_item_events=5))
    )
    # About 1 s on a quiet machine with 2 cores; the bound holds on a busy one.
    assert time.perf_counter() - started < 8
    assert (dataset.num_users, dataset.num_items, dataset.num_events) == (6040, 3416, 999_611)
    whole = prepare(
        _real("ml-1m/sequences.parquet"), tmp_path / "typed", PrepareConfig(filters=FilterConfig(min_item_events=5))
    )
    assert dataset.data_hash == whole.data_hash


def test_real_items_join_their_titles(tmp_path: Path) -> None:
    config = PrepareConfig(items=_real("ml-1m/movies.dat.gz"), items_read=ReadConfig(encoding="latin-1"))
    prepare(_real("ml-1m/sequences.parquet"), tmp_path / "data", config)
    table = pl.read_parquet(tmp_path / "data" / "items.parquet")
    assert table.height == 3706
    assert table["title"].null_count() == 0

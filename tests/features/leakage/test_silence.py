"""Whatever prepare and append make of logs holds no leak."""

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys import config as configs
from recsys.errors import DataError
from recsys.features.dataset import PreparedDataset
from recsys.features.leakage import find_leaks
from recsys.features.preparation.append import append
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from tests.features.leakage.planted import (
    Prepared,
    changed,
    nothing,
)

EVENTS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(0, 8), st.integers(1_400_000_000, 1_400_000_030)), min_size=8, max_size=60
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=EVENTS,
    protocol=st.sampled_from(["time", "loo", "loo-novalid", "ratio"]),
    shards=st.integers(1, 3),
    valid_share=st.sampled_from([0.0, 0.1, 0.3]),
)
def test_whatever_prepare_makes_of_a_log_is_silent(
    rows: list[tuple[int, int, int]], protocol: str, shards: int, valid_share: float, tmp_path: Path
) -> None:
    (tmp_path / "log.csv").write_text("user,item,ts\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    split = SplitConfig(protocol=protocol, valid_share=valid_share, test_share=0.2)  # type: ignore[arg-type]  # one of the four
    config = PrepareConfig(split=split, shards=shards)
    told, dataset = "", None
    try:
        dataset = prepare(tmp_path / "log.csv", tmp_path / "data", config)
    except DataError as error:
        told = str(error)
    # A log that is too small for its split is refused, and not for a leak.
    assert "leakage" not in told
    assert dataset is None or find_leaks(dataset) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    days=st.lists(EVENTS, min_size=2, max_size=4),
    protocol=st.sampled_from(["time", "loo", "ratio"]),
    shards=st.integers(1, 2),
    repeats=st.sampled_from(["keep", "collapse", "first", "last"]),
    min_item_events=st.sampled_from([1, 3]),
)
def test_whatever_appends_and_policies_make_of_logs_is_silent(
    days: list[list[tuple[int, int, int]]],
    protocol: str,
    shards: int,
    repeats: str,
    min_item_events: int,
    tmp_path: Path,
) -> None:
    config = configs.load(
        PrepareConfig,
        {
            "split": {"protocol": protocol, "test_share": 0.2},
            "events": {"repeats": repeats},
            "filters": {"min_item_events": min_item_events},
            "shards": shards,
        },
    )
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    told = ""
    try:
        for day, rows in enumerate(days):
            lines = "".join(f"u{u},{i + day},{t + 5 * day}\n" for u, i, t in rows)
            (tmp_path / f"{day}.csv").write_text("user,item,ts\n" + lines)
            if day == 0:
                prepare(tmp_path / "0.csv", tmp_path / "data", config)
            else:
                append(tmp_path / f"{day}.csv", tmp_path / "data")
            assert find_leaks(PreparedDataset.open(tmp_path / "data")) == []
    except DataError as error:
        told = str(error)
    assert "leakage" not in told


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("protocol", ["time", "loo", "loo-novalid", "ratio"])
def test_the_unchanged_dataset_is_silent_by_every_protocol(prepared: Prepared, protocol: str, shards: int) -> None:
    dataset = prepared(protocol, shards)
    assert find_leaks(dataset) == []
    assert find_leaks(changed(dataset, nothing)) == []
    assert dataset.manifest["leakage"]["declared_leaky"] is (protocol != "time")

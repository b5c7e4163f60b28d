from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.features.dataset import PreparedDataset, Split
from recsys.features.prepare import PrepareConfig, SplitConfig, prepare
from recsys.models.floors import (
    Blend,
    Ease,
    ItemKNN,
    ItemKNNConfig,
    Popularity,
    RecentConfig,
    RecentPopularity,
    TransitionConfig,
    TransitionKNN,
)
from recsys.models.protocols import Scorer
from recsys.pipelines.evaluation.full_ranking import Seen, rank_targets
from recsys.pipelines.floors.ranking import rank_floor


def floors_of(dataset: PreparedDataset) -> list[Scorer]:
    return [
        Popularity.fit(dataset),
        RecentPopularity.fit(dataset),
        RecentPopularity.fit(dataset, RecentConfig(half_life=900.0, unit="seconds")),
        TransitionKNN.fit(dataset),
        TransitionKNN.fit(dataset, TransitionConfig(window=1, query_last=1, popularity_power=0.0)),
        ItemKNN.fit(dataset, ItemKNNConfig(neighbours=3)),
        Blend.fit(dataset),
        Ease.fit(dataset),
    ]


def prepared(folder: Path, sequences: Sequence[Sequence[int]], protocol: str, target: str) -> PreparedDataset:
    rng = np.random.default_rng(1)
    lines = ["user_id,item_id,timestamp"]
    for user, items in enumerate(sequences):
        times = 1_600_000_000 + np.sort(rng.integers(0, 20_000, len(items)))
        lines += [f"u{user},i{item},{time}" for item, time in zip(items, times, strict=True)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    split = SplitConfig(protocol=protocol, target=target)  # type: ignore[arg-type]  # names of protocols and targets
    return prepare(folder / "log.csv", folder / "data", PrepareConfig(split=split))


@settings(max_examples=15, deadline=None)
@given(
    sequences=st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=9), min_size=4, max_size=12),
    kind=st.sampled_from([("loo", "next"), ("ratio", "all"), ("time", "all")]),
    seen=st.sampled_from(["exclude", "keep"]),
    split=st.sampled_from(["valid", "test"]),
)
def test_ranks_equal_the_plain_definition_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory,
    sequences: list[list[int]],
    kind: tuple[str, str],
    seen: Seen,
    split: Split,
) -> None:
    base = [[1, 2, 3, 2, 4, 5, 1], [9, 8, 7, 1, 3, 2, 3]]
    dataset = prepared(tmp_path_factory.mktemp("ranks"), [*base, *sequences], *kind)
    queries = dataset.queries(split)
    for floor in floors_of(dataset):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("recsys.models.floors.link_scorer._ENTRIES_AT_ONCE", 7)
            patch.setattr("recsys.pipelines.floors.ranking._MAX_ROWS", 5)
            found = rank_floor(floor, dataset, queries, seen)
        np.testing.assert_array_equal(found, rank_targets(floor, dataset, queries, seen))


def test_a_large_sparse_log_has_the_same_ranks_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sequences = [(rng.zipf(1.3, 12) % 900 + 1).tolist() for _ in range(400)]
    dataset = prepared(tmp_path, sequences, "loo", "next")
    queries = dataset.queries("test")
    for floor in floors_of(dataset):
        np.testing.assert_array_equal(rank_floor(floor, dataset, queries), rank_targets(floor, dataset, queries))
    assert TransitionKNN.fit(dataset).is_sparse


def test_an_unknown_seen_rule_is_refused(walks: PreparedDataset) -> None:
    with pytest.raises(ValueError, match="seen='twice': wanted exclude or keep"):
        rank_floor(Popularity.fit(walks), walks, walks.queries("test"), "twice")  # type: ignore[arg-type]  # the point
